"""What this machine keeps between runs: `tunegrid cache` prints kinds and sizes, `--prune` removes the oldest.

Tokenised rows go first, then environments of bisections, per-example scores, and checkpoints of cells that finished; never
journals, checkpoints that --resume may take up, or what a running session or bisection wrote.
A session prunes to 5 GiB by itself at its end.
"""

import argparse

from tunegrid.errors import InputError
from tunegrid.grid.profiles import CACHE
from tunegrid.results.cache import BOUND_BYTES, bytes_of, prune, shown


def main(arguments: list[str] | None = None) -> int:
    """Prune where asked, print what is there; return 0."""
    parser = argparse.ArgumentParser(prog="tunegrid cache", description=__doc__)
    parser.add_argument("--prune", action="store_true", help="remove the oldest files")
    parser.add_argument("--keep", metavar="SIZE", help="with --prune: at most so much stays, as in 500MiB or 2GiB (5GiB)")
    options = parser.parse_args(arguments)
    if options.keep and not options.prune:
        parser.error("--keep says how much --prune leaves: give both")
    try:
        keep = bytes_of(options.keep) if options.keep else BOUND_BYTES
        if options.prune:
            print(f"removed {prune(keep, CACHE) / 2**20:.1f} MiB")
    except InputError as error:
        parser.error(str(error))
    print(*shown(CACHE), sep="\n")
    return 0
