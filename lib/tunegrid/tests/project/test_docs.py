"""The pages: commands in them parse."""

import argparse
import re
import shlex

import pytest

from tunegrid import ROOT
from tunegrid import __main__ as product
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab import __main__ as lab

# What needs a network, runs everything, or is not ours.
OTHERS = (
    "pip",
    "uv",
    "python3",
    "source",
    ".ci/run",
    "ray",
    "benchmarks/ci/slurm.sh",
    "pytest-benchmark",
)


def commands():
    """Every command of the pages' bash blocks, as words."""
    pages = [ROOT / "README.md"]
    for folder in ("benchmarks", "lib", "reports"):
        pages += sorted((ROOT / folder).rglob("*.md"))
    text = "\n".join(page.read_text() for page in pages)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ")
    for command in re.split("\n|&&", lines):
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words and words[0] not in OTHERS:
            yield words


def test_pytest_commands_of_the_pages_parse(pytestconfig):
    """Checks options, their values, markers and cells.

    A path after a blank would be taken for a folder of tests.
    """
    markers = {re.match(r"\w+", line)[0] for line in pytestconfig.getini("markers")}
    for words in commands():
        if words[:2] == ["tunegrid", "run"]:
            arguments = words[2:]
        elif words[0] == "pytest" and "lib/tunegrid/tests" not in words:
            arguments = words[1:]
        else:
            continue
        options, unknown = pytestconfig._parser.parse_known_and_unknown_args(arguments)
        assert unknown == [], words
        assert options.file_or_dir == [], words
        assert set(re.findall(r"\w+", options.markexpr)) - {"and", "or", "not"} <= markers, words
        if options.cells and not options.grid:
            assert set(options.cells.split(",")) <= {*STUDY_IDS}, words


def test_our_own_commands_of_the_pages_parse(monkeypatch):
    class Parsed(Exception):
        """Its command line was accepted."""

    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    for words in commands():
        match words:
            case ["pytest", *_] | ["tunegrid", "run", *_]:
                continue
            case ["python", "-m", "tunegrid.lab.micro", *_]:
                continue
            case ["tunegrid", *arguments]:
                main = product.main
            case ["python", "-m", "tunegrid.lab", *arguments]:
                main = lab.main
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), words
                continue
            case _:
                pytest.fail(f"unknown command: {words}")
        with pytest.raises(Parsed):
            main(arguments)
