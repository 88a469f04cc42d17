"""Controls: a run that cannot have learned its task must miss a bound, in every cell. If one passes, the bound is blunt.

So must a run whose adapter is taken away after training while its head stays (`adapter_off`): the head alone must not do.
"""

from dataclasses import replace

from benchmarks.proof.plants.plant import Plant, with_other
from benchmarks.proof.plants.study import targets_dealt_out
from tunegrid.grid.cells import STUDY
from tunegrid.grid.more_tasks import belongs_to, more_tasks
from tunegrid.grid.recipes import QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo


def random_weights(cell, folder):
    """The backbone is built from scratch."""
    from tunegrid.lab.micro.pretrain import pretrain

    root = folder.parent / "untrained"  # pytest's, of all tests of this process: a backbone takes seconds
    if not (root / cell.backbone.micro).is_dir():
        pretrain(cell.backbone.id, root / cell.backbone.micro, steps=0, log=lambda line: None)
    return replace(cell, profile=replace(cell.profile, checkpoint_root=root))


def adapter_off(model, start):
    """The adapter goes back to where it started, under the head as it was trained."""
    model.load_state_dict(start, strict=False)


def a_tenth(trainer, folder):
    """Training ends after a tenth of its updates, on the course of all of them."""
    trainer.total = max(1, trainer.total // 10)
    return trainer


CAUSES = {
    "random_weights": ("a backbone with random weights", "built_cell", random_weights),
    "learning_rate_0": ("updates that move nothing", "cell", with_other("recipe", learning_rate=0.0, head_learning_rate=None)),
    "shuffled_labels": ("targets dealt out anew", "splits", targets_dealt_out),
    "a_tenth": ("training that ends after a tenth of its updates", "trainer", a_tenth),
    "adapter_off": ("the adapter taken away after training", "trained", adapter_off),
}


def controls(profile, cells, causes):
    """Each cause in each cell; what has no adapter cannot lose it."""
    for cause in causes:
        what, noun, broken_by = CAUSES[cause]
        for cell in cells:
            if cause != "adapter_off" or cell.method.adapts:
                yield Plant(cause, what, "classic", cell.id, broken_by, "bound", breaks=noun, profile=profile)


TASKS = [cell for cell in more_tasks().cells(TASKS_PROFILE) if belongs_to("tasks", cell.id)]
CONTROLS = (
    *controls("quick", STUDY.cells(QUICK_PROFILE), CAUSES),
    *controls("zoo", zoo().cells(ZOO_PROFILE), [cause for cause in CAUSES if cause != "random_weights"]),
    *controls("tasks", TASKS, CAUSES),
)
