"""Says what keeps runs from being like for like, as sentences or errors."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from tunegrid.errors import InputError
from tunegrid.record import Record

ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that affect speed


def check_alike(records: Iterable[Record]) -> None:
    """Raises InputError where the seeds of a cell differ in more than the seed."""
    facts_by_cell: dict[str, tuple[object, ...]] = {}
    for record in records:
        facts = (record.recipe, record.limits, record.examples and record.examples.rows_hash)
        if facts_by_cell.setdefault(record.cell, facts) != facts:
            raise InputError(f"the runs trained or scored {record.cell} differently, so they are not seeds of one experiment")


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError where two records were scored on different test rows."""
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        hashes = f"{before.examples.rows_hash} and {after.examples.rows_hash}"
        raise InputError(f"{before.cell}: the two runs scored different test rows ({hashes}) and cannot be paired")


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty where it can."""
    if not before.device or not after.device:
        return "a run does not name its device"
    facts = [("name", before.device.name, after.device.name), ("threads", before.device.threads, after.device.threads)]
    facts += [("ranks", before.processes, after.processes)]
    facts += [(package, before.versions.get(package), after.versions.get(package)) for package in ALIKE]
    for what, old, new in facts:
        if old != new:
            return f"{what}: {old} and {new}"
    return "measured on a device that others used" if before.device.contended or after.device.contended else ""


def unlike_libraries(before: Record, after: Record) -> str:
    """Which libraries two records do not have in common, by version or by code; empty where nothing is known to differ."""
    versions = [(name, before.versions.get(name), version) for name, version in after.versions.items()]
    other = [f"{name} {new}, it was {old}" for name, old, new in versions if old != new]
    digests = [(name, before.libraries[name], digest) for name, digest in after.libraries.items() if name in before.libraries]
    other += [
        f"{name} {after.versions.get(name)} of other code"
        for name, old, new in digests
        if old != new and before.versions.get(name) == after.versions.get(name)
    ]
    return "; ".join(other)


def adapts_head_alone(record: Record) -> bool:
    """Whether every layer that carries an adapter is one that pretraining never saw."""
    targets = (record.recipe.adapter or {}).get("target_modules")  # a method's own settings: of any type
    if not isinstance(targets, list) or record.model is None:
        return False
    return set() < set(map(str, targets)) <= set(record.model.adapted_modules)


def _budget(record: Record) -> str:
    return f"{record.training.updates if record.training else 'no'}x{record.recipe.rows_per_update}"


def _search(record: Record) -> str:
    search = record.recipe.generation
    return f"num_beams {search.num_beams}, max_new_tokens {search.max_new_tokens}" if search else "none"


# What methods that are like for like have in common, the budget first: updates times rows.
FACTS: Mapping[str, Callable[[Record], str]] = {
    "updates": _budget,
    "real tokens": lambda record: str(record.training and record.training.tokens),
    "order of rows": lambda record: str(record.training and record.training.order),
    "precision": lambda record: record.training.precision if record.training else "unknown",
    "data": lambda record: record.data.fingerprint if record.data else "unknown",
    "adapted": lambda record: "the new head alone" if adapts_head_alone(record) else "the backbone",
    "search": _search,
    "device": lambda record: f"{record.device.name}, {record.device.threads or 'no'} threads" if record.device else "unknown",
    "ranks": lambda record: record.processes,
    "libraries": lambda record: ", ".join(f"{name} {record.versions.get(name)}" for name in ALIKE),
}
OF_A_SEED = ("real tokens", "order of rows")  # no two seeds have these in common


def unlike_pairs(records: Sequence[Record]) -> list[str]:
    """A line for every pair of methods of one profile and seed that is not like for like, with what differs.

    First updates are all cut short alike.
    """
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.training and record.first_updates is None:
            groups[record.profile, record.seeds.seed, record.backbone, record.task].append(record)
    lines = []
    for one, other in (pair for group in groups.values() for pair in combinations(group, 2)):
        if differences := [name for name, fact in FACTS.items() if fact(one) != fact(other)]:
            lines.append(f"{one.cell} and {other.cell}: {', '.join(differences)}")
    return list(dict.fromkeys(lines))
