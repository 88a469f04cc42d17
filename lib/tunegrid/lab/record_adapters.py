"""Save one small adapter per method with the PEFT that is imported, for newer releases to serve alike.

An older release beside the installed libraries, none of which changes:

  pip install --target OLD --no-deps peft==0.19.1
  PYTHONPATH=OLD:lib python -m tunegrid.lab record_adapters

The adapters go to reports/artifacts/peft-VERSION, with the commit, all versions, and why a method is missing.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.machine import versions

TO = ROOT / "reports" / "artifacts"


def commit_of(root: Path, but_for: Path) -> str:
    """The commit of a clean checkout. Raises InputError where it is none, or has changes outside one of its folders."""
    changed = _git(root, "status", "--porcelain", "--", ".", f":(exclude){but_for.resolve().relative_to(root.resolve())}")
    if changed:
        raise InputError(f"the working tree has uncommitted changes, as of {changed.split()[1]}; commit or remove them first")
    return _git(root, "rev-parse", "HEAD")


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, encoding="utf-8")
    if answer.returncode:
        raise InputError(f"{root} is no checkout whose commit git tells; record adapters in a clone")
    return answer.stdout.strip()


def peft_version() -> str:
    """Of the PEFT that is imported. Raises InputError where its code and its package say different versions."""
    import peft

    named = versions()["peft"]
    if named != peft.__version__:
        raise InputError(f"peft imports as {peft.__version__}, but its package says {named}; install it with pip --target")
    return str(peft.__version__)


def main(arguments: list[str] | None = None) -> int:
    """Record all adapters; return 0, or 2 where it cannot be done here."""
    parser = argparse.ArgumentParser(
        prog="python -m tunegrid.lab record_adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        commit, folder = commit_of(ROOT, TO), TO / f"peft-{peft_version()}"
        from tunegrid.lab.artifacts import record_all

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        index = record_all(folder, commit, print)
    except InputError as error:
        print(f"record_adapters: {error}")
        return 2
    print(f"{len(index['adapters'])} adapters in {folder.relative_to(ROOT)}, {len(index['missing'])} missing")
    return 0
