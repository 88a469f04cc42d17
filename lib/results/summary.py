"""The table after a run. In: records. Out: lines of at most 100 columns, each with its verdict."""

from collections.abc import Iterable, Sequence

from lib.results.record import Record

HEADER = "cell            score        points  bound  train s samples/s  peak GiB trainable  verdict"


def rows(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(line, verdict) of every record, in the given order."""
    return [(_line(record), record["outcome"]) for record in records]


def _line(record: Record) -> str:
    name = record["main_score"]
    training, throughput = record["training"] or {}, record["throughput"] or {}
    parameters = record["parameters"] or {}
    cells = (
        f"{record['cell']:<15} {name:<12}",
        _number(record["scores"].get(name), 6, 1),
        _number(record["bounds"].get(name), 6, 1),
        _number(training.get("seconds"), 8, 1),
        _number(throughput.get("train_samples_per_second"), 9, 0),
        _number(peak_gib(record), 9, 2),
        _number(parameters.get("trainable_percent"), 8, 2) + ("%" if parameters else " "),
        f" {verdict(record)}",
    )
    return " ".join(cells)


def verdict(record: Record) -> str:
    """One or two words: passed, missed a bound, stopped early; a profile without bounds says so."""
    if record["outcome"] == "passed" and not record["bounds"]:
        return "no bound yet"
    return str(record["outcome"])


def peak_gib(record: Record) -> float | None:
    """The highest memory peak of all phases: of the GPU where there is one, of the process otherwise."""
    phases = ((record["memory"] or {}).get("phases") or {}).values()
    for key in ("reserved_peak_gib", "rss_peak_gib"):
        found = [phase[key] for phase in phases if phase.get(key) is not None]
        if found:
            return float(max(found))
    return None


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def footer(records: Sequence[Record], wall_seconds: float) -> str:
    """One closing line: how many cells, how many passed, how long it took, on what."""
    passed = sum(record["outcome"] == "passed" for record in records)
    devices = sorted({record["device"]["name"] for record in records if record["device"]})
    return f"{passed} of {len(records)} cells passed in {wall_seconds:.0f} s on {', '.join(devices) or 'no device'}"
