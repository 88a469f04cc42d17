"""The table after a run. In: records. Out: lines of at most 100 columns, each with its status."""

from collections.abc import Iterable, Sequence

from lib.record import Record, Status
from lib.results.table import Column, lines, number

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
COSTS = (
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


def rows(records: Sequence[Record]) -> list[tuple[str, Status]]:
    """A line and the status of every record, in the given order; footprints have columns of their own."""
    scores = iter(lines(SCORES, [_scores(record) for record in records if not record.flops])[1:])
    costs = iter(lines(COSTS, [_costs(record) for record in records if record.flops])[1:])
    return [(next(costs if record.flops else scores), record.status) for record in records]


def header(records: Sequence[Record]) -> str:
    """The columns' names: of scores, or of costs where all records are footprints."""
    if all(record.profile == "footprint" for record in records):
        return lines(COSTS, [_costs(record) for record in records if record.flops])[0]
    return lines(SCORES, [_scores(record) for record in records if not record.flops])[0]


def _costs(record: Record) -> tuple[str, ...]:
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
        number(peak_gib(record), 2),
        number(trainable, 2) + (" " if trainable is None else "%"),
        status_word(record),
    )


def status_word(record: Record) -> str:
    """The status in one to three words; a cell that passed without any bound says so."""
    if record.status == "passed" and not record.bounds and not record.flops:
        return "no bound yet"
    return record.status


def peak_gib(record: Record) -> float | None:
    """The highest memory peak of the cell's phases: of the GPU where there is one, else of the process."""
    if record.memory is None:
        return None
    peak = record.memory.peak("reserved_peak_gib")
    return record.memory.peak("rss_peak_gib") if peak is None else peak


def footer(records: Iterable[Record], wall_seconds: float) -> str:
    """One closing line: how many cells, how many passed, how long it took, on what."""
    records = list(records)
    passed = sum(record.status == "passed" for record in records)
    devices = sorted({record.device.name for record in records if record.device})
    return f"{passed} of {len(records)} cells passed in {wall_seconds:.0f} s on {', '.join(devices) or 'no device'}"
