"""The commands: how they are described, and how they refuse names and files."""

import json
import re
import subprocess
import sys

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import environments
from tunegrid.lab import __main__ as lab
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import complete_json

OF_PRODUCT = sorted(command.COMMANDS.keys() - {"run"})  # which becomes pytest
HELP = """
import sys
from tunegrid.__main__ import main
from tunegrid.lab.__main__ import COMMANDS, main as lab
for program, name in [*((main, name) for name in sys.argv[1:]), *((lab, name) for name in COMMANDS)]:
    try:
        program([name, "--help"])
    except SystemExit:
        print("--", *(library for library in ("pandas", "scipy", "torch") if library in sys.modules and program is main))
"""


def test_every_command_describes_itself_at_once_without_a_slow_import():
    done = subprocess.run(
        [sys.executable, "-c", HELP, *OF_PRODUCT], capture_output=True, text=True, check=True
    )
    texts = [text.partition(" [-h]")[0] for text in done.stdout.split("--\n")]
    usages = [
        *(f"usage: tunegrid {name}" for name in OF_PRODUCT),
        *(f"usage: python -m tunegrid.lab {name}" for name in lab.COMMANDS),
    ]
    assert [re.split(" SPEC| LIBRARY| --good", text)[0] for text in texts if text] == usages


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "bisect --cells=bert_sa_lora --good=../../../x==1 --bad=../../../x==2",
            "give two releases of one package",
        ),
        ("bisect --cells=bert_sa_lora --good=p==1 --bad=q==2", "give two releases of one package"),
        ("upgrade ../../x==1", "is no package: expected what pip takes"),
        ("upgrade --from=--target=x==1", "is no package: expected what pip takes"),
        ("upgrade -- x==1", "say what to upgrade to"),
        ("new method lora", "method 'lora' is in the grid already; give yours another NAME"),
        ("new backbone ../x", "invalid NAME '../x'"),
        ("new task json", "json.py would hide a module of Python's own"),
    ],
)
def test_names_are_checked_before_anything_is_made_of_them(
    tmp_path, monkeypatch, capsys, words, sentence
):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, command.main, *words.split())
    assert list(tmp_path.iterdir()) == []


OF_A_RUN = (
    "merge --baseline RUN -o TO.json",
    "compare RUN",
    "export RUN -o TO.csv",
    "gate RUN RUN",
    "merge RUN -o TO.json",
    "page RUN -o TO.html",
)
OLDER = {"benchmarks": [{"extra_info": complete_json(schema_version=1)}]}
NO_RUN = (
    (None, "does not exist"),
    ('{"benchmarks": [{"na', "is not a complete pytest-benchmark JSON"),
    ("[]", "is not a complete pytest-benchmark JSON"),
    ('{"benchmarks": []}', "holds no cells"),
    ('{"benchmarks": [{"name": "a", "name": "b"}]}', "the key 'name' is in one object twice"),
    (json.dumps(OLDER), "reads schema version 4, not 1"),
)


@pytest.mark.parametrize("words", OF_A_RUN)
def test_a_file_that_holds_no_run_is_one_sentence_of_every_command(tmp_path, capsys, words):
    arguments = [re.sub("^(?=RUN|TO)", f"{tmp_path}/", word) for word in words.split()]
    for text, sentence in NO_RUN:
        if text is not None:
            (tmp_path / "RUN").write_text(text)
        assert sentence in refusal(capsys, command.main, *arguments)
    assert not list(tmp_path.glob("TO*"))
