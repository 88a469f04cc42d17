"""Does a teacher help? `tunegrid distil STUDENT ... --teacher DIR ...` trains each student anew, with its teacher's help.

Both are folders that `pytest --save-models=DIR` left, of one backbone, task and rows: LoRA's of three seeds, say, and SFT's of
the same ones. A student starts as it did, and sees the same rows in the same order; its loss is (1 - alpha) x that of its task
plus alpha x T^2 x KL(teacher || student). Test rows are scored with and without the teacher, paired by seed and by row. Exit
code 1 where a saved model, loaded again, does not have the score of its record.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid.commands.cli import refuse
from tunegrid.disk import write_whole
from tunegrid.errors import InputError
from tunegrid.machine import keep_freed_memory, thread_share
from tunegrid.results.distil import DistilResult, Lesson
from tunegrid.terminal import say

if TYPE_CHECKING:
    import torch

    from tunegrid.data.splits import Splits
    from tunegrid.run.distil import Distillation
    from tunegrid.run.progress import LogThrottle, ProgressState
    from tunegrid.run.saved import Saved


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="tunegrid distil", description=__doc__)
    line.add_argument("students", type=Path, nargs="+", metavar="STUDENT", help="saved models of one cell, of other seeds each")
    line.add_argument(
        "--teacher", type=Path, nargs="+", required=True, metavar="DIR", help="a saved model for all, or one for each student"
    )
    line.add_argument("--alpha", type=_share, default=0.5, metavar="A", help="what the teacher says of the loss (default 0.5)")
    line.add_argument(
        "--temperature", type=_above_zero, default=2.0, metavar="T", help="both models' scores are divided by it (default 2)"
    )
    line.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write all figures there")
    line.add_argument("--save-models", type=Path, metavar="DIR", help="keep each distilled student there")
    line.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    line.add_argument("--data-root", type=Path, metavar="DIR", help="as for pytest")
    line.add_argument("--checkpoint-root", type=Path, metavar="DIR", help="as for pytest")
    return line


def _share(text: str) -> float:
    if not 0 <= (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 to 1")
    return value


def _above_zero(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no temperature: give a number above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def main(arguments: list[str] | None = None) -> int:
    """Print the result; return the exit code."""
    line = parser()
    options = line.parse_args(arguments)
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT's, on names that transformers gave up
            return run(options)
    except InputError as error:
        refuse(line, error)


def run(options: argparse.Namespace) -> int:
    """Train, score and print; return whether a saved model is not the one of its record."""
    import torch

    from tunegrid.run.device import resolve_device
    from tunegrid.run.distil import Distillation
    from tunegrid.run.saved import read

    roots = options.data_root, options.checkpoint_root
    students, teachers = ([read(one, *roots) for one in folders] for folders in (options.students, options.teacher))
    pairs = paired(students, teachers)
    check_place(options.save_models, [*students, *teachers])
    first = students[0].cell
    torch.set_num_threads(thread_share(first.profile.threads))
    keep_freed_memory()
    device, splits = resolve_device(options.device or first.profile.device), students[0].splits()
    how = Distillation(alpha=options.alpha, temperature=options.temperature)
    told = [taught_and_scored(*pair, how, splits, device, options.save_models) for pair in pairs]
    result = DistilResult(
        cell=first.id,
        teacher=teachers[0].cell.id,
        metric=first.task.main_score,
        lessons=[lesson for lesson, _ in told],
        **vars(how),
    )
    wrong = list(dict.fromkeys(sentence for _, sentences in told for sentence in sentences))
    say("\n".join([result.as_text(), *wrong]))
    if options.output:
        write_whole(options.output, json.dumps(result.as_json(), indent=1))
    return int(bool(wrong))


def paired(students: "Sequence[Saved]", teachers: "Sequence[Saved]") -> "list[tuple[Saved, Saved]]":
    """Each student with its teacher; raises InputError where they do not fit."""
    from tunegrid.run.distil import check_teacher
    from tunegrid.run.saved import SAME_TASK, unlike

    for saved, what in ((students, "students"), (teachers, "teachers")):
        if len(cells := {one.cell.id for one in saved}) > 1:
            raise InputError(f"the {what} are of {' and '.join(sorted(cells))}: give seeds of one cell")
    if len({one.record.seeds.seed for one in students}) < len(students):
        raise InputError("two students have one seed: give each seed once")
    for one in students[1:]:
        if difference := unlike(students[0], one, SAME_TASK):
            raise InputError(f"{students[0].name} and {one.name} are no seeds of one experiment: {difference}")
    if len(teachers) not in (1, len(students)):
        raise InputError(f"{len(teachers)} teachers for {len(students)} students: give one for all, or one for each")
    pairs = list(zip(students, [*teachers] * len(students) if len(teachers) == 1 else teachers, strict=True))
    for student, teacher in pairs:
        check_teacher(teacher, student)
    return pairs


def check_place(root: Path | None, saved: "Sequence[Saved]") -> None:
    """Raises InputError where a distilled student would replace a model that was given, or cannot be kept."""
    if root is None:
        return
    for one in saved:
        if one.folder.parent.resolve() == root.resolve():
            raise InputError(f"--save-models={root} holds {one.name}, which a distilled model would replace")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--save-models={root} cannot be written ({error.strerror or error}); give another place") from None


def logged(throttle: "LogThrottle") -> "Callable[[ProgressState], None]":
    """Says now and then where a training stands."""

    def tell(state: "ProgressState") -> None:
        for line in throttle.due([state]):
            say(line, error=True)

    return tell


def taught_and_scored(
    student: "Saved", teacher: "Saved", how: "Distillation", splits: "Splits", device: "torch.device", root: Path | None
) -> tuple[Lesson, list[str]]:
    """What the teacher did to one seed; a sentence for each of the two that does not have the score of its record."""
    from tunegrid.run.distil import record_of, taught
    from tunegrid.run.path import Judge
    from tunegrid.run.progress import LogThrottle, Progress
    from tunegrid.run.saved import save
    from tunegrid.run.serving import Serving

    model, codec = student.served(device)
    score, alone = Judge(codec=codec, device=device).scored(model, splits.test)
    model, codec = teacher.served(device)
    teachers_score, _ = Judge(codec=codec, device=device).scored(model, splits.test)
    distilled = taught(student, model, how, splits, device, Progress(student.name, logged(LogThrottle())))
    if root:
        record = record_of(student, distilled, teacher, how)
        save(student.cell, distilled.model, distilled.tokenizer, record, root, Serving())
    lesson = Lesson(
        seed=student.record.seeds.seed, name=teacher.name, score=teachers_score, alone=alone, distilled=distilled.points
    )
    return lesson, list(filter(None, (student.unlike_record(score), teacher.unlike_record(teachers_score))))
