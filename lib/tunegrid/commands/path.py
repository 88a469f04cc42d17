"""What lies between two trained models? `tunegrid path A B` scores theta(a) = (1 - a) A + a B for a = 0, 0.1 ... 1.

A and B are folders that `pytest --save-models=DIR` left, of one backbone, task and seed: LoRA or QLoRA and SFT, say. An adapter
is merged first, onto its base's own numbers where that is packed to 4 bits. The place is chosen on validation rows, and it and
both ends are scored on test rows, once. Of an adapter, other scales are tried, too. Three and more folders, seeds of one cell,
are averaged. Exit code 1 where a saved model, loaded again, does not have the score of its record.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid.commands.cli import refuse
from tunegrid.data.sources import Row
from tunegrid.data.splits import Splits
from tunegrid.disk import write_whole
from tunegrid.errors import InputError
from tunegrid.results.path import SCALES, SHARES, PathResult, Points, SoupResult, chosen, path_result, soup_result
from tunegrid.terminal import say

if TYPE_CHECKING:
    import torch

    from tunegrid.run.saved import Saved


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="tunegrid path", description=__doc__)
    line.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="two saved models, or more seeds of one cell")
    line.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write all figures there")
    line.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    line.add_argument("--data-root", type=Path, metavar="DIR", help="as for pytest")
    line.add_argument("--checkpoint-root", type=Path, metavar="DIR", help="as for pytest")
    return line


def main(arguments: list[str] | None = None) -> int:
    """Print the result; return the exit code."""
    line = parser()
    options = line.parse_args(arguments)
    if len({folder.resolve() for folder in options.folders}) < max(2, len(options.folders)):
        line.error("a path has two ends: give two folders, or more for their mean, each once")
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT's, on names that transformers gave up, and on rounding in merges
            return walk(options)
    except InputError as error:
        refuse(line, error)


def walk(options: argparse.Namespace) -> int:
    """Load, score and print; return whether a saved model is not the one of its record."""
    from tunegrid.run.device import resolve_device
    from tunegrid.run.path import check_alike, check_seed, check_seeds
    from tunegrid.run.saved import read

    saved = [read(folder, options.data_root, options.checkpoint_root) for folder in options.folders]
    check_alike(saved)
    if len(saved) == 2:
        check_seed(*saved)
    else:
        check_seeds(saved)
    device = resolve_device(options.device or saved[0].cell.profile.device)
    splits = saved[0].splits()
    wrong = [sentence for one in saved if (sentence := unlike_record(one, splits.test, device))]
    result = between(saved[0], saved[1], splits, device) if len(saved) == 2 else averaged(saved, splits, device)
    say("\n".join([result.as_text(), *wrong]))
    if options.output:
        write_whole(options.output, json.dumps(result.as_json(), indent=1))
    return int(bool(wrong))


def unlike_record(saved: "Saved", rows: Sequence[Row], device: "torch.device") -> str:
    """A sentence where a model, loaded again, does not have the score of its record, to the last digit; empty where it has."""
    from tunegrid.run.path import Judge

    model, codec = saved.served(device)
    return saved.unlike_record(Judge(codec=codec, device=device).scored(model, rows)[0])


def between(first: "Saved", second: "Saved", splits: Splits, device: "torch.device") -> PathResult:
    """What lies on the way from one model to another; rows are read as the second one reads them."""
    from tunegrid.run.path import Judge, along, scaled, state_of

    scales, validation, test = dict[float, Points](), dict[float, Points](), dict[float, Points]()
    if first.cell.method.adapts:
        adapted, own = first.served(device)
        scales = {at: Judge(codec=own, device=device).points(model, splits.validation) for at, model in scaled(adapted, SCALES)}
    last = second.merged(device).float()
    judge = Judge(codec=second.codec(), device=device)
    ends = state_of(first.merged(device)), state_of(last)
    for share, model in along(last, *ends, SHARES):
        validation[share] = judge.points(model, splits.validation)
    for share, model in along(last, *ends, [0.0, chosen(validation)[1], 1.0]):
        test[share] = judge.points(model, splits.test)
    return path_result((first.name, second.name), first.cell.task.main_score, validation, test, scales)


def averaged(saved: "Sequence[Saved]", splits: Splits, device: "torch.device") -> SoupResult:
    """The mean of several models beside each of them."""
    from tunegrid.run.path import Judge, check_states, load_state, mean, state_of

    judge = Judge(codec=saved[0].codec(), device=device)
    states, validation, test = [], dict[str, Points](), dict[str, Points]()
    for one in saved:
        model = one.merged(device).float()
        states.append(state_of(model))
        check_states(states[0], states[-1])
        validation[one.name], test[one.name] = (judge.points(model, rows) for rows in (splits.validation, splits.test))
    load_state(model, mean(states))
    return soup_result(saved[0].cell.task.main_score, validation, test, judge.points(model, splits.test))
