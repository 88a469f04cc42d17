"""Controls: runs that cannot have learned their task, each of which must miss a bound.

If a control passes, the bound is too low. `adapter_off` resets the adapter after training but keeps
the trained head: it must miss a bound, too, because a trained head alone must not suffice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from benchmarks.proof.plants.plant import Plant, with_other
from benchmarks.proof.plants.study import targets_dealt_out
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.more_tasks import belongs_to, more_tasks
from tunegrid.grid.recipes import QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.train import Trainer


def random_weights(cell: Cell, folder: Path) -> Cell:
    """Replaces the pretrained backbone with an untrained one."""
    from tunegrid.lab.micro.pretrain import pretrain

    # All tests of this process share the folder, because making a backbone takes seconds.
    root = folder.parent / "untrained"
    if not (root / cell.backbone.micro).is_dir():
        pretrain(cell.backbone.id, root / cell.backbone.micro, steps=0, log=lambda line: None)
    return replace(cell, profile=replace(cell.profile, checkpoint_root=root))


def adapter_off(model: nn.Module, start: dict[str, Tensor]) -> None:
    """Resets the adapter to its initial weights but keeps the trained head."""
    model.load_state_dict(start, strict=False)


def a_tenth(trainer: Trainer, folder: Path) -> Trainer:
    """Stops training after a tenth of its updates; the schedule still spans all updates."""
    trainer.total = max(1, trainer.total // 10)
    return trainer


class Cause(NamedTuple):
    """A reason why a run cannot have learned its task."""

    what: str
    breaks: str
    broken_by: Callable[..., Any]


NO_RATE = with_other("recipe", learning_rate=0.0, head_learning_rate=None)
CAUSES = {
    "random_weights": Cause("a backbone with random weights", "built_cell", random_weights),
    "learning_rate_0": Cause("updates that move nothing", "cell", NO_RATE),
    "shuffled_labels": Cause("targets dealt out anew", "splits", targets_dealt_out),
    "a_tenth": Cause("training that ends after a tenth of its updates", "trainer", a_tenth),
    "adapter_off": Cause("the adapter taken away after training", "trained", adapter_off),
}


def controls(profile: str, cells: Sequence[Cell], ids: Iterable[str]) -> Iterator[Plant]:
    """Yields a plant for each cause and cell, except `adapter_off` for cells without an adapter."""
    for id in ids:
        cause = CAUSES[id]
        for cell in cells:
            if id == "adapter_off" and not cell.method.adapts:
                continue
            yield Plant(
                id,
                cause.what,
                "classic",
                cell.id,
                cause.broken_by,
                "bound",
                breaks=cause.breaks,
                profile=profile,
            )


TASK_CELLS = [cell for cell in more_tasks().cells(TASKS_PROFILE) if belongs_to("tasks", cell.id)]
TRAINED_CAUSES = [id for id in CAUSES if id != "random_weights"]
CONTROLS = [
    *controls("quick", STUDY.cells(QUICK_PROFILE), CAUSES),
    *controls("zoo", zoo().cells(ZOO_PROFILE), TRAINED_CAUSES),
    *controls("tasks", TASK_CELLS, CAUSES),
]
