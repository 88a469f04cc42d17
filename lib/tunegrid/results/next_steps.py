"""Says what to do next about what a run or a gate found: the third line of an answer."""

import shlex
from collections.abc import Iterable, Sequence

from packaging.version import InvalidVersion, Version

from tunegrid.grid.more_tasks import words_for
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.results.judgements import KINDS, Judgement

SEVERAL_SEEDS = "give both runs several seeds (`--seeds 0-4`)"
UNLIKE = "compare runs of the same cells, seeds, rows and recipes, on one machine"
SUSPECT = "look for leaked rows or a lost mask"
TRAIN_BOTH = "run both sides without --first-updates: the baseline has no scores to judge by"
RUN_THE_REST = "the pytest command that ran them, with --resume, runs what is left"
LOOK_HERE = "no library is known to differ; `tunegrid gate --numerics OLD.json NEW.json` prints how far figures moved"
FLIPS = "`tunegrid gate OLD.json NEW.json --show-flips 5` lists the test rows that changed"
ASKED = "benchmarks/guides/instruments.md says what the figures hold"
COSTS = "benchmarks/guides/memory-and-speed.md says what the figures hold"


def about_audit(name: str, records: Sequence[Record]) -> str:
    """What helps where an audit failed."""
    return f"`{command_of(records[0])}` runs one alone; reports/evidence/audits.md says what {name} looks at"


def about_bound(records: Sequence[Record], *, gated: bool) -> str:
    """What helps where a score is below its bound: the gate names what changed."""
    first = records[0]
    baseline = "reports/baselines/quick-cpu.json" if first.profile == "quick" else "RUN.json"
    again = f"`{command_of(first)}` runs one alone"
    return again if gated else f"`{command_of(first)} --gate={baseline}` says what is other than in a run that passed"


def about_cells(records: Sequence[Record]) -> str:
    """What helps where cells broke off."""
    return f"`{command_of(records[0])}` runs one alone, with its traceback"


def about_missing(cells: Sequence[str], profile: str) -> str:
    """What helps where cells of the baseline have not run."""
    return f"`pytest -m {profile or 'quick'} --cells {shlex.quote(','.join(cells))}` runs what is missing"


def about_beginnings(cells: Sequence[str]) -> str:
    """What trains cells to their end that made only their first updates, and are not as before."""
    return f"the same command without --first-updates, with `--cells {shlex.quote(','.join(cells))}`, trains them to the end"


def about_change(cell: str, kinds: Sequence[str], before: Iterable[Record], after: Iterable[Record]) -> str:
    """What finds the cause of a change: the command that bisects the library that differs; empty where none does.

    Args:
        cell: that changed.
        kinds: of figures by which it did.
        before: the baseline's records.
        after: the run's.
    """
    old, new = ([record for record in records if record.cell == cell] for records in (before, after))
    pairs = [(a, b) for b in new for a in old if a.seeds.seed == b.seeds.seed] or list(zip(old, new, strict=False))
    pair = next(iter(pairs), None)
    if pair is None:
        return ""
    upgraded = [name for name in PACKAGES if _is_newer(*(record.versions.get(name) for record in pair))]
    if not upgraded:
        return _about_code(cell, kinds, *pair)
    name, *others = upgraded
    ends = [f"{name}=={record.versions[name]}" for record in pair]
    command = ["tunegrid", "bisect", "--good", ends[0], "--bad", ends[1], *_options(cell, kinds, new)]
    also = f" ({', '.join(others)} changed, too)" if others else ""
    return f"`{shlex.join(command)}` finds the release{also}"


def _about_code(cell: str, kinds: Sequence[str], before: Record, after: Record) -> str:
    """The same where libraries have one version and other code, as two commits of a checkout."""
    digests = [name for name in PACKAGES if name in before.libraries and name in after.libraries]
    changed = [name for name in digests if before.libraries[name] != after.libraries[name]]
    other = [name for name in changed if _is_other_code(before.versions.get(name), after.versions.get(name))]
    if not other:
        return ""
    command = ["tunegrid", "bisect", "--repo", "CHECKOUT", "--good", "COMMIT", "--bad", "HEAD", *_options(cell, kinds, [after])]
    return f"`{shlex.join(command)}` finds the commit of {other[0]}"


def _options(cell: str, kinds: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Of `tunegrid bisect`: the cell, what counts, and pytest's own where they are not its default."""
    seeds = sorted({record.seeds.seed for record in records if record.seeds.seed is not None})
    marker = words_for(records[0].cell, records[0].profile)
    of_pytest = ["-m", marker] if marker != "quick" else []
    of_pytest += ["--ask", ",".join(records[0].instruments)] if records[0].instruments else []
    of_pytest += ["--seeds", ",".join(map(str, seeds))] if seeds not in ([], [0]) else []
    by = ",".join(kind for kind in KINDS if kind in kinds)
    return ["--cells", cell, "--by", by, *(["--", *of_pytest] if of_pytest else [])]


def _is_newer(before: str | None, after: str | None) -> bool:
    """Whether a library was upgraded from one release to another; bisecting needs the older one as its good end."""
    try:
        old, new = Version(before or ""), Version(after or "")
    except InvalidVersion:
        return False
    return Version(old.public) < Version(new.public) and not (old.is_devrelease or new.is_devrelease)


def _is_other_code(before: str | None, after: str | None) -> bool:
    """Whether a library may be a checkout's: it has one version, or that of no release."""
    try:
        return before == after or Version(after or "").is_devrelease
    except InvalidVersion:
        return False


def about_worse(worse: Sequence[Judgement], before: Iterable[Record], after: Iterable[Record]) -> str:
    """What helps where figures are worse: bisecting if a library differs; else the rows, or what figures of cost hold."""
    first = worse[0]
    kinds = list(dict.fromkeys(judgement.kind for judgement in worse))
    found = about_change(first.cell, kinds, before, after)
    return found or {"quality": FLIPS, "instruments": ASKED}.get(first.kind, COSTS)


def command_of(record: Record) -> str:
    """What runs a cell by itself."""
    seed = f" --seeds {record.seeds.seed}" if record.seeds.seed else ""
    asked = f" --ask {','.join(record.instruments)}" if record.instruments else ""
    return (
        f"pytest -m {shlex.quote(words_for(record.cell, record.profile))} -n 0 --cells {shlex.quote(record.cell)}{seed}{asked}"
    )
