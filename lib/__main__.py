"""Commands on saved runs: `python -m lib NAME ...`; `python -m lib NAME --help` describes one."""

import sys
from difflib import get_close_matches
from importlib import import_module

COMMANDS = {
    "gate": "is a run worse than another? a verdict for every cell",
    "numerics": "did the arithmetic of training change? a verdict for every cell",
    "audit": "re-check a saved run: impossible scores, copied results, failed audits",
    "compare": "which method, on which task, at what cost: fronts, and groups that cannot be told apart",
    "scores": "list every difference between the scores of two runs",
    "page": "a run as one HTML file, beside older runs",
    "export": "runs as one table, for pandas or DuckDB",
    "merge": "make one run of several, as of shards or a CI matrix",
    "plan": "how long the full grid takes on so many GPUs, in how much memory, at what price",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "baseline": "make a baseline of complete, clean, passed runs, one a seed",
    "measure": "all that the suite says of itself, once: bounds, noise, baseline, error rates, zoo",
    "calibrate": "train the quick grid with several seeds and write its bounds and its training noise",
    "power": "what the gate sees, and how often it is wrong: simulated",
    "sees": "what the gate sees of real degradations: trains the quick cells with something wrong",
    "silence": "does the suite cry wolf? trains healthy runs and counts those that anything calls",
    "overhead": "what the suite itself costs at 500 to 5,000 rows, without any training",
    "scaling": "does cost grow as it should? every stage of a cell at several numbers of rows",
    "finish": "make a run's JSON from the journal of a session that was killed",
    "profile": "where the quick grid's time goes, by stage",
    "cache": "what this machine keeps between runs, by kind and size; --prune removes the oldest",
    "schema": "write reports/schema.json from the record's classes",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code, 2 for one that does not exist."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "python -m lib lists them all"
        print(f"python -m lib: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    code: int = import_module(f"lib.commands.{name}").main(rest)
    return code


def usage() -> str:
    """Every command with what it does."""
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: python -m lib COMMAND ...", "", *lines, "", "python -m lib COMMAND --help describes one."])


if __name__ == "__main__":
    sys.exit(main())
