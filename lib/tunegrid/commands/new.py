"""A file to start from: `tunegrid new task reviews` writes reviews.py, which runs at once, without network.

Its comments say what to change. A task comes with a folder of rows that were made up, so that it has something to read: replace
them by yours. Nothing that is there is replaced.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import product
from keyword import iskeyword
from pathlib import Path
from random import Random

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import NAME, study
from tunegrid.terminal import say

STARTERS = ROOT / "benchmarks" / "starters"
KINDS = ("task", "method", "backbone")
LONGEST = 40  # letters of a name, which is a part of names of files
ROWS = {"train": 640, "test": 160}  # of the made-up task; 100 test rows tell whether anything was learned
# Words that the micro backbones know. A row says the same thing of two parts of a product.
PRODUCTS, PARTS = (
    ("kettle", "lamp", "radio", "camera", "jacket", "phone"),
    ("handle", "colour", "price", "lid", "smell", "size"),
)
SAID = {
    "negative": ("poor", "nasty", "bad", "weak", "cheap", "noisy"),
    "positive": ("great", "solid", "good", "fine", "lovely"),
}


def check_name(kind: str, name: str) -> None:
    """Raises InputError where an entry of the grid cannot have this name, or another one has it."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise InputError(
            f"invalid NAME {name[:LONGEST]!r}: expected lower-case letters and digits, since underscores divide a cell's id, "
            f"and {LONGEST} at most"
        )
    if iskeyword(name) or name in sys.stdlib_module_names:
        raise InputError(f"{name}.py would hide a module of Python's own, or {name} is a keyword: give another NAME")
    if name in getattr(study(), f"{kind}s"):
        raise InputError(f"{kind} {name!r} is in the grid already; give yours another NAME")


def rows() -> dict[str, list[tuple[str, str]]]:
    """Sentences and labels by split, each sentence once, the same at every call."""
    all_rows = [(text, label) for label in SAID for text in sentences(label)]
    drawn = Random(0).sample(all_rows, sum(ROWS.values()))
    return {"train": drawn[: ROWS["train"]], "test": drawn[ROWS["train"] :]}


def sentences(label: str) -> Iterator[str]:
    """Every sentence that says something good, or bad."""
    for product_name, (first, second), said in product(PRODUCTS, product(PARTS, PARTS), SAID[label]):
        if first != second:
            yield f"the {first} of this {product_name} is {said} and the {second} is {said} ."


def files(kind: str, name: str, folder: Path) -> dict[Path, str]:
    """What is written, by path."""
    starter = (STARTERS / f"{kind}.py").read_text(encoding="utf-8").replace("NAME", name)
    texts = {folder / f"{name}.py": starter}
    if kind == "task":
        texts |= {folder / name / f"{split}.csv": as_csv(own) for split, own in rows().items()}
    return texts


def as_csv(own: list[tuple[str, str]]) -> str:
    """Rows under the names of their columns."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *own])
    return text.getvalue()


def write(texts: dict[Path, str]) -> None:
    """Write all files, through no link; raises InputError if one is there already, or cannot be written."""
    folder = next(iter(texts)).parent
    for place in {place: None for path in texts for place in (path, path.parent) if place != folder}:
        if place.is_symlink() or place.exists():
            raise InputError(f"{place} is there already; give another NAME or --to=DIR")
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:  # which no link can stand for
                file.write(text)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error}); give --to=DIR") from None


def main(arguments: list[str] | None = None) -> int:
    """Write the file, say how to run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid new", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", metavar="NAME", help="its id in the grid: lower-case letters and digits")
    parser.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="write there (default: here)")
    options = parser.parse_args(arguments)
    name, path = options.name, options.to / f"{options.name}.py"
    try:
        check_name(options.kind, name)
        texts = files(options.kind, name, options.to)
        write(texts)
    except InputError as error:
        refuse(parser, error)
    cell = {"task": f"bert_{name}_lora", "method": f"bert_sa_{name}", "backbone": f"{name}_sa_lora"}[options.kind]
    say("\n".join([f"wrote {', '.join(map(str, texts))}", f"tunegrid run -m quick --grid={path} --cells={cell}"]))
    return 0
