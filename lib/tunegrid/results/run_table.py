"""Prints the table after a run, with one line of at most 100 columns per cell, over its seeds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record, Status
from tunegrid.results.alike import unlike_pairs
from tunegrid.results.failures import told_by_cause
from tunegrid.results.status import status_of, too_short
from tunegrid.results.table import Column, lines, number

MIB = 2**20
SCORES = (
    Column(title="cell", width=15),
    Column(title="score", width=12),
    Column(title="points", width=6, right=True),
    Column(title="bound", width=6, right=True),
    Column(title="train s", width=8, right=True),
    Column(title="samples/s", width=9, right=True),
    Column(title="peak GiB", width=9, right=True),
    Column(title="trainable", width=9, right=True),
    Column(title="status", gap=2),
)
# Where counters of energy were read: kilojoules of all of a cell's phases, in place of the share that trains.
ENERGY = {
    "gpu_energy_joules": Column(title="GPU kJ", width=6, right=True),
    "cpu_energy_joules": Column(title="CPU kJ", width=6, right=True),
}
# Where cells ran with several seeds: the deviation and the lowest score take the place of speed and size.
SPREADS = (
    *SCORES[:2],
    Column(title="seeds", width=5, right=True),
    Column(title="mean", width=6, right=True),
    Column(title="sd", width=5, right=True),
    Column(title="lowest", width=6, right=True),
    *(column for column in SCORES[2:] if column.title in ("bound", "train s", "peak GiB", "status")),
)
FOOTPRINT = (
    Column(title="cell", width=15),
    Column(title="step ms", width=7, right=True),
    Column(title="p90 ms", width=7, right=True),
    Column(title="tokens/s", width=8, right=True),
    Column(title="gen/s", width=5, right=True),
    Column(title="weights", width=7, right=True),
    Column(title="grads", width=5, right=True),
    Column(title="optim.", width=6, right=True),
    Column(title="activ.", width=6, right=True),
    Column(title="MiB peak", width=8, right=True),
    Column(title="MFU %", width=5, right=True),
    Column(title="status", gap=2),
)


def summary(
    records: Iterable[Record], cells: Sequence[str] = STUDY_IDS, seconds: float | None = None
) -> Iterator[tuple[str, str]]:
    """Lines with their colours, if any: one per cell over its seeds, in this order, and what was missed by its cause."""
    order = {cell: index for index, cell in enumerate(cells)}
    records = sorted(records, key=lambda r: (r.profile, order.get(r.cell, len(order)), r.cell, r.seeds.seed or 0))
    if not records:
        return
    yield header(records), ""
    yield from ((text, {"passed": "green", "begun": ""}.get(status, "red")) for text, status in rows(records))
    yield footer(records, seconds), ""
    yield from ((line, "red") for line in told_by_cause(records))
    yield from ((sentence, "yellow") for record in records for sentence in too_short(record))
    if pairs := unlike_pairs(records):
        more = f"; {len(pairs) - 1} more pairs" if pairs[1:] else ""
        yield f"not like for like: {pairs[0]}{more}", ""


def rows(records: Sequence[Record]) -> list[tuple[str, Status]]:
    """A line and the status of every cell, in the order of the records; a footprint has columns and a line of its own."""
    cells = by_cell(record for record in records if not record.flops)
    footprints = [record for record in records if record.flops]
    scored = zip(_score_lines(cells)[1:], map(status_of, cells), strict=True)
    measured = lines(FOOTPRINT, [_footprint(record) for record in footprints])[1:]
    return [*scored, *zip(measured, (record.status for record in footprints), strict=True)]


def by_cell(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each profile's cells: one per seed."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record.profile, record.cell), []).append(record)
    return list(cells.values())


def _score_lines(cells: Sequence[Sequence[Record]]) -> list[str]:
    if any(len(seeds) > 1 for seeds in cells):
        return lines(SPREADS, [_spread(seeds) for seeds in cells])
    records = [record for seeds in cells for record in seeds]
    counted = [figure for figure in ENERGY if any(joules_of(record, figure) is not None for record in records)]
    if not counted:
        return lines(SCORES, [_scores(record) for record in records])
    columns = (*SCORES[:-2], *(ENERGY[figure] for figure in counted), SCORES[-1])
    joules = [[joules_of(record, figure) for figure in counted] for record in records]
    kilo = [[number(None if one is None else one / 1000, 2) for one in own] for own in joules]
    scores = [_scores(record) for record in records]
    return lines(columns, [(*own[:-2], *counts, own[-1]) for own, counts in zip(scores, kilo, strict=True)])


def joules_of(record: Record, figure: str) -> float | None:
    """Joules of a cell by one counter, a field of `Phase`; None where it was not read."""
    return record.memory.joules(figure) if record.memory else None


def header(records: Sequence[Record]) -> str:
    """The columns' names: of scores, or of footprints where all records are of it."""
    if all(record.profile == "footprint" for record in records):
        return lines(FOOTPRINT, [_footprint(record) for record in records if record.flops])[0]
    return _score_lines(by_cell(record for record in records if not record.flops))[0]


def _footprint(record: Record) -> tuple[str, ...]:
    speed, flops = record.throughput, record.flops
    steps = (speed.step_seconds_median, speed.step_seconds_p90) if speed else (None, None)
    sizes: tuple[int | None, ...] = (None,) * 5
    if record.memory:
        ledger = record.memory.ledger
        parts = (ledger.weights_bytes, ledger.gradients_bytes, ledger.optimizer_bytes)
        sizes = (*parts, ledger.activations_bytes, ledger.peak_bytes)
    return (
        record.cell,
        *(number(None if seconds is None else 1000 * seconds, 0) for seconds in steps),
        number(speed.train_tokens_per_second if speed else None, 0),
        number(speed.generated_tokens_per_second if speed else None, 0),
        *(number(None if size is None else size / MIB, 0) for size in sizes),
        number(flops.mfu_percent if flops else None, 1),
        status_word(record),
    )


def _scores(record: Record) -> tuple[str, ...]:
    training, speed = record.training, record.throughput
    trainable = record.parameters.trainable_percent if record.parameters else None
    return (
        record.cell,
        record.main_score,
        number(record.scores.get(record.main_score), 1),
        number(record.bounds.get(record.main_score), 1),
        number(training.seconds if training else None, 1),
        number(speed.train_samples_per_second if speed else None, 0),
        number(record.peak_gib, 2),
        number(trainable, 2) + (" " if trainable is None else "%"),
        status_word(record),
    )


def _spread(seeds: Sequence[Record]) -> tuple[str, ...]:
    """A cell over its seeds: mean, deviation and lowest of the main score, seconds per seed, the highest peak."""
    first = seeds[0]
    scores = [score for record in seeds if (score := record.scores.get(first.main_score)) is not None]
    seconds = [record.training.seconds for record in seeds if record.training]
    peaks = [peak for record in seeds if (peak := record.peak_gib) is not None]
    passed = sum(record.status == "passed" for record in seeds)
    alike = len({record.status for record in seeds}) == 1
    return (
        first.cell,
        first.main_score,
        f"{len(seeds)}",
        number(fmean(scores) if scores else None, 1),
        number(stdev(scores) if len(scores) > 1 else None, 2),
        number(min(scores, default=None), 1),
        number(first.bounds.get(first.main_score), 1),
        number(fmean(seconds) if seconds else None, 1),
        number(max(peaks, default=None), 2),
        status_word(max(seeds, key=lambda record: len(record.excused))) if alike else f"{passed} of {len(seeds)} passed",
    )


def status_word(record: Record) -> str:
    """The status in one to three words; a cell that passed without any bound, or was too short to be audited, says so."""
    if record.status != "passed" or record.flops:
        return record.status
    if record.excused:
        return "too short"
    return "passed" if record.bounds else "no bound yet"


def footer(records: Iterable[Record], wall_seconds: float | None) -> str:
    """One closing line: how many cells, how many passed, how long it took, on what; and whether the runs were perturbed.

    A run too short for some audit counts as passed, and is counted apart, too.
    """
    records = list(records)
    passed, cells = sum(record.status == "passed" for record in records), len(by_cell(records))
    what = "cells" if cells == len(records) else f"runs of {cells} cells"
    devices = ", ".join(sorted({record.device.name for record in records if record.device})) or "no device"
    draws = sorted({f"{draw}" for record in records if (draw := record.seeds.perturbation) is not None})
    note = f"; starts perturbed by draw {', '.join(draws)}: this run cannot be a baseline" if draws else ""
    time = "" if wall_seconds is None else f" in {wall_seconds:.0f} s"
    short = sum(bool(record.excused) for record in records)
    doubt = f", {short} of them too short for some audit," if short else ""
    begun = [record for record in records if record.first_updates]
    came = f", {len(begun)} made only their first {max(r.first_updates or 0 for r in begun)} updates," if begun else ""
    closing = f"{passed} of {len(records)} {what} passed{came}{doubt}{time} on {devices}{note}"
    return "\n".join(filter(None, (closing, mixture(records))))


def mixture(records: Iterable[Record]) -> str:
    """Which devices and versions a run mixes, as where nodes of a cluster differ; empty where all cells had the same."""
    measured = [record for record in records if record.device]
    devices = Counter(record.device.name for record in measured if record.device)
    packages = sorted({package for record in measured for package in record.versions})
    versions = {package: sorted({f"{record.versions.get(package)}" for record in measured}) for package in packages}
    unlike = [f"{package} {' and '.join(seen)}" for package, seen in versions.items() if len(seen) > 1]
    digests = {package: {record.libraries.get(package) for record in measured} - {None} for package in packages}
    mixed = [name for name in packages if len(versions[name]) == 1 < len(digests[name])]
    unlike += [f"{name} {versions[name][0]} of {len(digests[name])} different codes" for name in mixed]
    if len(devices) > 1:
        unlike.insert(0, ", ".join(f"{count} on {name}" for name, count in devices.most_common()))
    return (
        f"a mixed run: {'; '.join(unlike)}; compare speed and memory only between like cells, as the gate does"
        if unlike
        else ""
    )
