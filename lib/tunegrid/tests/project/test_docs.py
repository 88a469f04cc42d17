"""The pages: commands in them parse."""

import argparse
import re
import shlex
from importlib import import_module

import pytest

from tunegrid import ROOT
from tunegrid import __main__ as product
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab import __main__ as lab

PAGES = [
    ROOT / "README.md",
    *(
        page
        for folder in ("benchmarks", "lib", "reports")
        for page in sorted((ROOT / folder).rglob("*.md"))
    ),
]
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
    text = "\n".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words and words[0] not in OTHERS:
                yield words


def test_pytest_commands_of_the_pages_parse(pytestconfig):
    """Options, their values, markers and cells; a path after a blank would be taken for a folder of
    tests.
    """
    markers = {line.partition(":")[0].partition("(")[0] for line in pytestconfig.getini("markers")}
    wanted = [
        words[1:]
        for words in commands()
        if words[0] == "pytest" and "lib/tunegrid/tests" not in words
    ]
    wanted += [words[2:] for words in commands() if words[:2] == ["tunegrid", "run"]]
    for words in wanted:
        options, unknown = pytestconfig._parser.parse_known_and_unknown_args(words)
        assert (unknown, options.file_or_dir) == ([], []), words
        assert set(re.findall(r"\w+", options.markexpr)) - {"and", "or", "not"} <= markers, words
        ids = {*(options.cells or "").split(",")} - {""} if not options.grid else set()
        assert ids <= {*STUDY_IDS}, words


def test_our_own_commands_of_the_pages_parse(monkeypatch):
    class Parsed(Exception):
        """Its command line was accepted."""

    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    for words in commands():
        assert words[0] in ("pytest", "python", "tunegrid"), words
        if (
            words[0] == "pytest"
            or words[:2] == ["tunegrid", "run"]
            or words[1:3] == ["-m", "tunegrid.lab.micro"]
        ):
            continue
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words
            continue
        package, names, (name, *arguments) = (
            ("tunegrid.commands", product.COMMANDS, words[1:])
            if words[0] == "tunegrid"
            else ("tunegrid.lab", lab.COMMANDS, words[3:])
        )
        assert name in names
        with pytest.raises(Parsed):
            import_module(f"{package}.{name}").main(arguments)
