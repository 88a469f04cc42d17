"""A record and a page are published: no sentence of theirs says where on whose machine a file
lay.
"""

import json
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import checkpoint_source
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.page.render import html
from tunegrid.page.view import make_page
from tunegrid.record import to_json
from tunegrid.runs import examples
from tunegrid.terminal import defuse, defuse_lines, strip_places
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.pages import get_record, make_run
from tunegrid.tests.records import altered

HUB = "https://huggingface.co/google-t5/t5-small and hub:squad/train"
NONE = "36/40 rows, samples/s, lib/tunegrid/machine.py, and/or, / , /2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/alice/models/bert has no config.json", "bert has no config.json"),
        ("no 'squad' below /mnt/alice/rows (missing)", "no 'squad' below rows (missing)"),
        ("[Errno 2] No such file: '/home/alice/x.json'", "[Errno 2] No such file: 'x.json'"),
        ("look in /home/alice, /Users/alice or /root", "look in ~, ~ or ~"),
        (f"{ROOT}/reports/latest.json, line 3", "reports/latest.json, line 3"),
        (
            "/opt/v/lib/python3.11/site-packages/peft/tuners/lora/layer.py, line 9",
            "peft/tuners/lora/layer.py, line 9",
        ),
        ("--data-root=/mnt/alice/rows -n 2", "--data-root=DIR -n 2"),
        ("--cache=/scratch/alice/c", "--cache=c"),
        (HUB, HUB),
        (NONE, NONE),
    ],
)
def test_of_an_absolute_path_the_last_part_is_told(text, expected):
    assert strip_places(text) == expected


def test_a_record_and_a_page_hold_no_absolute_path_but_a_test_rows_own(tmp_path, store):
    cell = STUDY.cell("bert_sa_sft", QUICK_PROFILE)
    with pytest.raises(InputError, match=str(tmp_path)) as error:  # the terminal says all of it
        checkpoint_source(cell.backbone, replace(cell.profile, checkpoint_root=tmp_path / "models"))
    message = str(error.value)
    finding = ("served_as_trained", False, f"could not look: OSError: {message}")
    record = get_record(status="missed", missed=[message], audits=[finding])
    text = "I keep it below /srv/shelf/books"
    record = altered(record, "examples.texts", examples.write_texts([text] * 40, ["x"] * 40))
    page = html(make_page(make_run([record])))
    for published in (json.dumps(to_json(record)), page):
        assert "below models" in published
        assert str(tmp_path) not in published
    assert text in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "pytest --benchmark-storage=elasticsearch+https://me:hush@host:9200/x",
            "elasticsearch+https://host:9200/x",
        ),
        ("MLFLOW_TRACKING_URI is 'http://token@host'", "'http://host'"),
        (
            "git+ssh://git@github.com/huggingface/peft@v0.12",
            "git+ssh://git@github.com/huggingface/peft@v0.12",
        ),
        ("see https://me:hu/hush@host.org/x@v1.0", "see https://host.org/x@v1.0"),
        ("'https://me:hu hush@host:80/x'", "'https://host:80/x'"),
        ("'https://me:hu'\"'\"'hush@host/x'", "'https://host/x'"),
        ("https://me:12/hush@host/x", "https://host/x"),
        ("https://me:hu@hush@host.org/x", "https://host.org/x"),
        ("--html=//me:hush@host/x", "--html=//host/x"),
        ("https://git@hush@host/x", "https://host/x"),
        ("git@hush@host:x/y", "git@host:x/y"),
        ("(https://host/x.whl?token=hush)", "(https://host/x.whl)"),
        ("peft @ https://host/x.whl#hush, 0.12", "peft @ https://host/x.whl, 0.12"),
        (
            "https://localhost:80/a@b, http://[::1]:80/c: me@host",
            "https://localhost:80/a@b, http://[::1]:80/c: me@host",
        ),
        ("https://host:443 is silent: ask me@host", "https://host:443 is silent: ask me@host"),
        ("git+file:///srv/repo@main", "git+file:///srv/repo@main"),
        ("a // b, c//d:e@f, //", "a // b, c//d:e@f, //"),
        ("mail me@host, see https://host/a@b", "mail me@host, see https://host/a@b"),
    ],
)
def test_an_address_is_shown_and_recorded_without_its_user_and_password(text, expected):
    for shown in (defuse(text), strip_places(text)):
        assert shown.endswith(expected)
        assert "hush" not in shown


# Text of files is shown on a terminal and in a CI's log, and neither obeys it; files are UTF-8
# whatever the locale.


TITLE = "\x1b]0;owned\x07"  # sets a terminal's title


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
    assert defuse(text) == shown
    assert obeyed(defuse(text)) == []


def test_an_error_is_one_line_whatever_it_quotes_and_each_line_is_looked_at():
    message = str(InputError(f"{TITLE} is no cell\n::error::x"))
    assert message == r"\x1b]0;owned\x07 is no cell\n::error::x"
    assert first_line(ValueError(f"{TITLE}\nmore")) == r"\x1b]0;owned\x07"
    assert first_line(ValueError("9" * 5000)) == "9" * 497 + "..."
    assert defuse_lines("cells\n::error::x") == "cells\n\\::error::x"
