"""The table after a run. In: records. Out: lines of at most 100 columns, each with its verdict."""

from collections.abc import Iterable, Sequence

from lib.results.record import Record

HEADER = "cell            score        points  bound  train s samples/s  peak GiB trainable  verdict"


FOOTPRINT_HEADER = "cell            step ms  p90 ms tokens/s gen/s weights grads optim. activ. MiB peak MFU %  verdict"
MIB = 2**20
OURS = ("audit", "trace")  # phases of the suite's own doing, not the cell's


def rows(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(line, verdict) of every record, in the given order."""
    return [(_footprint(record) if record["flops"] else _line(record), record["outcome"]) for record in records]


def header(records: Sequence[Record]) -> str:
    """The columns' names: of scores, or of costs alone."""
    return FOOTPRINT_HEADER if all(record["profile"] == "footprint" for record in records) else HEADER


def _footprint(record: Record) -> str:
    ledger, speed = record["memory"]["ledger"], record["throughput"]
    sizes = [ledger[f"{name}_bytes"] / MIB for name in ("weights", "gradients", "optimizer", "activations")]
    steps = [seconds and 1000 * seconds for seconds in (speed["step_seconds_median"], speed["step_seconds_p90"])]
    cells = (
        f"{record['cell']:<15}",
        number(steps[0], 7, 0),
        number(steps[1], 7, 0),
        number(speed["train_tokens_per_second"], 8, 0),
        number(speed["generated_tokens_per_second"], 5, 0),
        *(number(size, width, 0) for size, width in zip(sizes, (7, 5, 6, 6), strict=True)),
        number(ledger["peak_bytes"] / MIB, 8, 0),
        number(record["flops"]["mfu_percent"], 5, 1),
        f" {verdict(record)}",
    )
    return " ".join(cells)


def _line(record: Record) -> str:
    name = record["main_score"]
    training, throughput = record["training"] or {}, record["throughput"] or {}
    parameters = record["parameters"] or {}
    cells = (
        f"{record['cell']:<15} {name:<12}",
        number(record["scores"].get(name), 6, 1),
        number(record["bounds"].get(name), 6, 1),
        number(training.get("seconds"), 8, 1),
        number(throughput.get("train_samples_per_second"), 9, 0),
        number(peak_gib(record), 9, 2),
        number(parameters.get("trainable_percent"), 8, 2) + ("%" if parameters else " "),
        f" {verdict(record)}",
    )
    return " ".join(cells)


def verdict(record: Record) -> str:
    """One or two words: passed, missed a bound, stopped early; a profile without bounds says so."""
    if record["outcome"] == "passed" and not record["bounds"] and not record["flops"]:
        return "no bound yet"
    return str(record["outcome"])


def peak_gib(record: Record) -> float | None:
    """The highest memory peak of all phases: of the GPU where there is one, of the process otherwise."""
    phases = (record["memory"] or {}).get("phases") or {}
    for key in ("reserved_peak_gib", "rss_peak_gib"):
        found = [phase[key] for name, phase in phases.items() if name not in OURS and phase.get(key) is not None]
        if found:
            return float(max(found))
    return None


def number(value: float | None, width: int, digits: int) -> str:
    """A right-aligned figure; a dash for what was not measured."""
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def footer(records: Sequence[Record], wall_seconds: float) -> str:
    """One closing line: how many cells, how many passed, how long it took, on what."""
    passed = sum(record["outcome"] == "passed" for record in records)
    devices = sorted({record["device"]["name"] for record in records if record["device"]})
    return f"{passed} of {len(records)} cells passed in {wall_seconds:.0f} s on {', '.join(devices) or 'no device'}"
