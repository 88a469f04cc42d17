"""Records of older schema versions. In: a record's JSON. Out: the same record as the current version says it.

`MIGRATIONS` has one function a step: a new version adds one, from the version before it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.record.record import SCHEMA_VERSION

Json = dict[str, Any]


def refuse_version_1(data: Json) -> Json:
    """Version 1 lacks measurements that later versions require; raises InputError."""
    raise InputError(
        "a record of schema version 1 does not say how many tokens it trained on, in which order and micro-batches; "
        "run its cells again"
    )


def from_version_2(data: Json) -> Json:
    """`outcome` became `status`; what the task's and the model's descriptions told stands in the record.

    Version 2 had the study's cells only, so the study's grid says what is new.

    Raises:
        InputError: where the study has no such task or cell.
    """
    task, backbone = STUDY.tasks.get(str(data.get("task"))), STUDY.backbones.get(str(data.get("backbone")))
    if task is None or backbone is None:
        raise InputError(
            f"a record of schema version 2 is of the study's backbones and tasks, but this one is of "
            f"{data.get('backbone')!r} and {data.get('task')!r}"
        )
    head = STUDY.heads.get(str(data.get("cell"))) or backbone.heads.get(task.problem)
    new = {
        "schema_version": 3,
        "bounded_scores": list(task.bounded_scores),
        "labels": list(task.labels),
        "status": data.get("outcome"),
    }
    kept = {name: value for name, value in data.items() if name != "outcome"}
    if isinstance(kept.get("model"), dict):
        kept["model"] = kept["model"] | {"adapted_modules": list(head.adapted_modules) if head else []}
    if isinstance(kept.get("memory"), dict) and isinstance(kept["memory"].get("ledger"), dict):
        kept["memory"] = kept["memory"] | {"ledger": dict.fromkeys(LEDGER) | kept["memory"]["ledger"]}
    return kept | new


def from_version_3(data: Json) -> Json:
    """No run was perturbed yet, no recipe computed its activations twice, and nobody looked at the first update."""
    recipe, seeds, training = data.get("recipe"), data.get("seeds"), data.get("training")
    new: Json = {"schema_version": 4}
    if isinstance(recipe, dict):
        new["recipe"] = {"gradient_checkpointing": False} | recipe
    if isinstance(seeds, dict):
        new["seeds"] = {"perturbation": None} | seeds
    if isinstance(training, dict):
        new["training"] = dict.fromkeys(("gradient_norm", "clipped_norm", "first_step")) | training
    return data | new


LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes", "activations_bytes", "peak_bytes")
MIGRATIONS: Mapping[int, Callable[[Json], Json]] = {1: refuse_version_1, 2: from_version_2, 3: from_version_3}


def migrated(data: Json) -> Json:
    """The record in the current version; raises InputError for a version that cannot be read."""
    while (version := data.get("schema_version")) != SCHEMA_VERSION:
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(f"schema version {version} is newer than {SCHEMA_VERSION}, which this tunegrid reads; update it")
        if not isinstance(version, int) or version not in MIGRATIONS:
            raise InputError(f"its schema_version is {version!r}; this tunegrid reads 2 to {SCHEMA_VERSION}")
        data = MIGRATIONS[version](data)
    return data
