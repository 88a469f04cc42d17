"""The commands: what they print, and how they refuse."""

import json
import re
import subprocess
import sys

import pytest

from tunegrid import __main__ as command
from tunegrid.data import sources as hub
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.lab import __main__ as lab
from tunegrid.record import new_record, to_json
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import MEASURED, complete_json


def saved(path, points, cells=27):
    """A pytest-benchmark file whose first cells all score `points`."""
    records = []
    for cell in STUDY.cells(QUICK_PROFILE)[:cells]:
        measured = {"scores": dict.fromkeys(cell.task.bounded_scores, points), "device": MEASURED["device"]}
        records.append(to_json(new_record(cell)) | measured)
    path.write_text(json.dumps({"benchmarks": [{"extra_info": record} for record in records]}))
    return path


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed_with_a_line_each(arguments, capsys):
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-2]] == list(command.COMMANDS)
    assert all(len(line) <= 100 for line in lines)


def test_the_version_is_said(capsys):
    assert command.main(["--version"]) == 0
    assert re.fullmatch(r"tunegrid \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_an_unknown_command_is_one_sentence(capsys):
    assert command.main(["gaet", "a.json"]) == 2
    assert capsys.readouterr().err == "tunegrid: unknown command 'gaet'; did you mean gate?\n"
    assert command.main(["retrain"]) == 2
    assert capsys.readouterr().err == "tunegrid: unknown command 'retrain'; tunegrid lists them all\n"
    assert not command.FORMER.keys() & command.COMMANDS.keys()
    for message in command.FORMER.values():
        if command_line := re.match(r"write `(?:tunegrid|python -m tunegrid\.lab) (\w+)", message):
            assert command_line[1] in {**command.COMMANDS, **lab.COMMANDS}


def test_a_reader_that_has_enough_ends_a_command_quietly():
    with subprocess.Popen([sys.executable, "-m", "tunegrid"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lists:
        lists.stdout.close()  # before the first line, as `head -0` does
        assert (lists.stderr.read(), lists.wait()) == (b"", 141)


OF_PRODUCT = sorted(command.COMMANDS.keys() - {"run"})  # which becomes pytest: it would end this session


@pytest.mark.parametrize(
    ("main", "usage", "name"),
    [
        *((command.main, "tunegrid", name) for name in OF_PRODUCT),
        *((lab.main, "python -m tunegrid.lab", name) for name in lab.COMMANDS),
    ],
)
def test_every_command_describes_itself(main, usage, name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {usage} {name}")


@pytest.mark.parametrize(
    ("points", "cells", "code", "said"),
    [
        (90.5, 27, 0, "identical: 81 scores of 27 cells"),  # 9 cells of two tasks with 2 scores each, 9 of the third with 5
        (90.50000000000001, 27, 1, "bert_sa_lora: accuracy 90.5 and 90.50000000000001"),
        (90.5, 26, 1, "t5_sa_sft: only in one of the two\n"),
    ],
)
def test_scores_are_identical_to_the_last_digit_or_listed(tmp_path, capsys, points, cells, code, said):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", points, cells)
    assert command.main(["gate", "--exact", str(first), str(second)]) == code
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["answer", "baseline", "plan", "cells", "cache", "plot", "tune", "path", "distil"])
def test_a_command_of_version_0_16_says_what_to_do_now(name, capsys):
    assert command.main([name, "a.json"]) == 2
    assert capsys.readouterr().err == f"tunegrid {name} was removed: {command.FORMER[name]}\n"


OF_A_RUN = (
    *("compare RUN", "export RUN -o TO.csv", "gate RUN RUN", "gate --exact RUN RUN"),
    *("merge RUN -o TO.json", "merge --baseline RUN -o TO.json", "page RUN -o TO.html"),
)
OLDER = {"benchmarks": [{"extra_info": complete_json(schema_version=1)}]}
NO_RUN = (
    (None, "does not exist"),
    ('{"benchmarks": [{"na', "is not a complete pytest-benchmark JSON"),
    ("[]", "is not a complete pytest-benchmark JSON"),
    ('{"benchmarks": []}', "holds no cells"),
    ('{"benchmarks": [{"name": "a", "name": "b"}]}', "the key 'name' stands twice in one object"),
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


def test_an_unreachable_hub_switches_the_libraries_to_their_caches(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "")  # so that its old value, if any, is restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert not hub.prefer_cache_if_unreachable.__wrapped__()
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
