"""The commands: how they are described, and how they refuse names and files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import environments
from tunegrid.lab import __main__ as lab
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import complete_json

NAMES = sorted(command.COMMANDS.keys() - {"run"})  # which becomes pytest
# Prints each command's help, and after those of the product which slow libraries were imported
HELP = """
import sys
from contextlib import suppress
from tunegrid.__main__ import main
from tunegrid.lab.__main__ import COMMANDS, main as lab
for name in sys.argv[1:]:
    with suppress(SystemExit):
        main([name, "--help"])
print("imported:", *{"pandas", "scipy", "torch"} & sys.modules.keys())
for name in COMMANDS:
    with suppress(SystemExit):
        lab([name, "--help"])
"""


def test_every_command_describes_itself_at_once_without_a_slow_import():
    done = subprocess.run(
        [sys.executable, "-c", HELP, *NAMES], capture_output=True, text=True, check=True
    )
    assert "imported:\n" in done.stdout
    assert re.findall("^usage: (.+?)(?= SPEC| \\[LIBRARY| --good| \\[-h)", done.stdout, re.M) == [
        *(f"tunegrid {name}" for name in NAMES),
        *(f"python -m tunegrid.lab {name}" for name in lab.COMMANDS),
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "bisect --cells=bert_sa_lora --good=../../../x==1 --bad=../../../x==2",
            "give two releases of one package",
        ),
        ("bisect --cells=bert_sa_lora --good=p==1 --bad=q==2", "give two releases of one package"),
        ("upgrade ../../x==1", "is no package: expected what pip takes"),
        ("upgrade --from=--target=x==1", "is no package: expected what pip takes"),
        (
            "upgrade -- x==1",
            "say what to upgrade to, as in `tunegrid upgrade transformers==5.25`",
        ),
    ],
)
def test_packages_are_checked_before_anything_is_made_of_them(
    tmp_path, monkeypatch, capsys, line, sentence
):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    assert sentence in refusal(capsys, command.main, *line.split())
    assert list(tmp_path.iterdir()) == []


OLDER = {"benchmarks": [{"extra_info": complete_json(schema_version=1)}]}
FAULTS = {
    '{"benchmarks": [{"na': "is not a complete pytest-benchmark JSON",
    "[]": "is not a complete pytest-benchmark JSON",
    '{"benchmarks": []}': "holds no cells",
    '{"benchmarks": [{"name": "a", "name": "b"}]}': "the key 'name' is in one object twice",
    json.dumps(OLDER): "reads schema version 4, not 1",
}


@pytest.mark.parametrize(
    "line",
    [
        "merge --baseline RUN -o TO.json",
        "compare RUN",
        "export RUN -o TO.csv",
        "gate RUN RUN",
        "merge RUN -o TO.json",
        "page RUN -o TO.html",
    ],
)
def test_a_file_that_holds_no_run_is_one_sentence_of_every_command(tmp_path, capsys, line):
    assert "does not exist" in refusal(capsys, command.main, *line.split())
    for text, sentence in FAULTS.items():
        Path("RUN").write_text(text)
        assert sentence in refusal(capsys, command.main, *line.split())
    assert not list(tmp_path.glob("TO*"))
