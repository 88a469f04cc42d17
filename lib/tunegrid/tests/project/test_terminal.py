"""Text of files is shown on a terminal and in a CI's log, and neither obeys it; files are UTF-8 whatever the locale."""

import json
import os
import subprocess
import sys

import pytest

from tunegrid.errors import InputError, first_line
from tunegrid.terminal import visible, visible_lines
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import complete_json
from tunegrid.tests.sessions import SOURCES

TITLE = "\x1b]0;owned\x07"  # sets a terminal's title
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a locale in which Python writes ASCII


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("f1 82.1 – é", "f1 82.1 – é"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202etxt\ud800", r"\u202etxt\ud800"),
        ("::add-mask::82.1", r"\::add-mask::82.1"),
        ("  ::error::x", r"\  ::error::x"),
        ("a ##[group]b ##vso[task]", "a # #[group]b # #vso[task]"),
        ("std::vector, ## 3 [x]", "std::vector, ## 3 [x]"),
    ],
)
def test_what_a_terminal_or_a_ci_would_obey_is_written_out(text, shown):
    assert visible(text) == shown
    assert obeyed(visible(text)) == []


def test_an_error_is_one_line_whatever_it_quotes_and_each_line_is_looked_at():
    assert str(InputError(f"{TITLE} is no cell\n::error::x")) == r"\x1b]0;owned\x07 is no cell\n::error::x"
    assert first_line(ValueError(f"{TITLE}\nmore")) == r"\x1b]0;owned\x07"
    assert visible_lines("cells\n::error::x") == "cells\n\\::error::x"


@pytest.mark.parametrize("command", [["merge", "-o", "merged.json"], ["page", "-o", "page.html"]])
def test_a_run_with_letters_beyond_ascii_is_read_and_told_in_a_locale_of_ascii(command, tmp_path):
    record = complete_json()
    record["device"] = record["device"] | {"name": "Prozessor für é"}
    path = tmp_path / "run.json"
    path.write_text(
        json.dumps({"benchmarks": [{"fullname": "b::t", "extra_info": record}]}, ensure_ascii=False), encoding="utf-8"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "tunegrid", command[0], str(path), *command[1:]],
        cwd=tmp_path, env=os.environ | ASCII | {"PYTHONPATH": SOURCES}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"wrote {command[2]}" in answer.stdout
    assert "f\\xfcr" in answer.stdout or command[0] == "page"
