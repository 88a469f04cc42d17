"""A record and a page are published: no sentence of theirs says where on whose machine a file lay."""

import json
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.backbones import checkpoint_of
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.page.render import html
from tunegrid.page.view import page_of
from tunegrid.record import to_json
from tunegrid.results import examples
from tunegrid.terminal import visible, without_places
from tunegrid.tests.pages import record_of, run_of

HUB = "https://huggingface.co/google-t5/t5-small and hub:squad/train"
NONE = "36/40 rows, samples/s, lib/tunegrid/machine.py, and/or, / , /2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/data/alice/models/bert has no config.json", "bert has no config.json"),
        ("no 'squad' below /mnt/alice/rows (missing)", "no 'squad' below rows (missing)"),
        ("[Errno 2] No such file: '/home/alice/x.json'", "[Errno 2] No such file: 'x.json'"),
        ("look in /home/alice, /Users/alice or /root", "look in ~, ~ or ~"),
        (f"{ROOT}/reports/latest.json, line 3", "reports/latest.json, line 3"),
        ("/opt/v/lib/python3.11/site-packages/peft/tuners/lora/layer.py, line 9", "peft/tuners/lora/layer.py, line 9"),
        ("--cache=/scratch/alice/c", "--cache=c"),
        (HUB, HUB),
        (NONE, NONE),
    ],
)
def test_of_an_absolute_path_the_last_part_is_told(text, said):
    assert without_places(text) == said


def test_a_record_and_a_page_hold_no_absolute_path_but_a_test_rows_own(tmp_path, store):
    cell = STUDY.cell("bert_sa_sft", QUICK_PROFILE)
    with pytest.raises(InputError, match=str(tmp_path)) as error:  # the terminal says all of it
        checkpoint_of(cell.backbone, replace(cell.profile, checkpoint_root=tmp_path / "models"))
    finding = ("served_as_trained", False, f"could not look: OSError: {error.value}")
    record = record_of(status="missed", missed=[str(error.value)], audits=[finding])
    row = "I keep it below /srv/shelf/books"
    (store / f"rows-{record.examples.rows_hash}.parquet").unlink()
    examples.write_texts(record.examples.rows_hash, [row] * 40, ["x"] * 40)
    page = html(page_of(run_of([record])))
    for written in (json.dumps(to_json(record)), page):
        assert "below models" in written
        assert str(tmp_path) not in written
    assert row in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pytest --benchmark-storage=elasticsearch+https://me:hush@host:9200/x", "elasticsearch+https://host:9200/x"),
        ("MLFLOW_TRACKING_URI is 'http://token@host'", "'http://host'"),
        ("git+ssh://git@github.com/huggingface/peft", "git+ssh://git@github.com/huggingface/peft"),
        ("mail me@host, see https://host/a@b", "mail me@host, see https://host/a@b"),
    ],
)
def test_an_address_is_shown_and_recorded_without_its_user_and_password(text, said):
    for shown in (visible(text), without_places(text)):
        assert shown.endswith(said)
        assert "hush" not in shown
