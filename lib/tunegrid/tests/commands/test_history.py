"""A library's history, by runs that are saved for each release."""

import json
from pathlib import Path

import pytest
from packaging.version import Version

from tunegrid import __main__ as command
from tunegrid.commands import history
from tunegrid.tests.commands.test_upgrade import CELLS, CHANGED, EQUAL, FAILED, OTHER, broken
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import begun, get_record, hits

FAILS = f"audit base_frozen fails in {CELLS[1]}: one changed"


@pytest.fixture
def walk(saved_runs, run_command, monkeypatch):
    """Walks over four releases, of which 2.0 does not run and 3.0 changes a cell's gradients.

    Returns the exit code, the printed lines, and the releases by version.
    """
    monkeypatch.setattr(history, "list_releases", lambda *arguments: ["4.0", "3.0", "2.0", "1.0"])
    saved_runs.add("1.0", EQUAL)
    saved_runs.add("3.0", CHANGED)
    saved_runs.add("4.0", CHANGED)

    def walk(options=""):
        code, lines = run_command(f"history planted --from 1.0 -o history.json {options}")
        releases = json.loads(Path("history.json").read_text())["releases"]
        return code, lines, {release["version"]: release for release in releases}

    return walk


def test_each_release_is_measured_once_and_compared_with_the_last_that_ran(saved_runs, walk):
    code, lines, releases = walk()
    versions = ["1.0", "2.0", "3.0", "4.0"]
    assert code == 0
    assert [*releases] == versions
    arguments = "-m quick --resume -n auto --first-updates"
    assert saved_runs.sessions == [f"{version} first-updates: {arguments}" for version in versions]
    assert releases["2.0"]["fault"].startswith("no cell runs with planted 2.0: ")
    assert releases["3.0"]["before"] == "1.0"
    assert releases["3.0"]["changed_cells"] == [CELLS[1]]
    [[kind, sentence]] = releases["3.0"]["findings"]
    assert kind == "numerics"
    assert sentence.startswith(f"1 cell, as {CELLS[1]}: ")
    assert releases["4.0"]["before"] == "3.0"
    assert releases["4.0"]["numerics"] == "2 equal"
    assert releases["4.0"]["findings"] == []
    assert "3 of 4 releases of planted ran; 1 changed something: 3.0 (numerics 1)." in lines


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([broken(cell) for cell in CELLS], "no cell finishes with planted 3.0: OSError: no room"),
        (
            [begun(cell, profile="zoo") for cell in CELLS],
            "the baseline holds quick cells, the run zoo cells: judge one profile at a time",
        ),
    ],
    ids=["no cell finishes", "another profile"],
)
def test_a_release_that_cannot_be_compared_is_left_out(saved_runs, walk, records, fault):
    saved_runs.add("3.0", records)
    code, lines, releases = walk()
    assert code == 0
    assert releases["3.0"]["fault"] == fault
    assert releases["4.0"]["before"] == "1.0"
    assert releases["4.0"]["changed_cells"] == [CELLS[1]]
    assert "2 of 4 releases of planted ran; 1 changed something: 4.0 (numerics 1)." in lines


def test_a_cell_that_changed_trains_to_its_end_with_whole(saved_runs, walk):
    saved_runs.add("1.0 whole", [get_record(CELLS[1], {"accuracy": hits(512, 480)})])
    worse = get_record(CELLS[1], {"accuracy": hits(512, 416)}, training=OTHER)
    saved_runs.add("3.0 whole", [worse])
    _, _, releases = walk("--whole")
    assert [session for session in saved_runs.sessions if " whole: " in session] == [
        f"1.0 whole: -m quick --cells {CELLS[1]} --resume -n auto",
        f"3.0 whole: -m quick --cells {CELLS[1]} --resume -n auto",
    ]
    [_, [kind, sentence]] = releases["3.0"]["findings"]
    assert kind == "quality"
    assert sentence.startswith(f"worse: {CELLS[1]} accuracy -12.50 points (")


def test_an_audit_that_fails_is_in_the_row_and_a_persons_cause_too(saved_runs, walk):
    saved_runs.add("4.0", FAILED)
    Path("causes.toml").write_text('"4.0" = "pull request 7: a base that trains"\n')
    _, lines, releases = walk("--causes causes.toml")
    assert ["audits", FAILS] in releases["4.0"]["findings"]
    assert releases["4.0"]["cause"] == "pull request 7: a base that trains"
    assert releases["3.0"]["cause"] == ""
    assert any("pull request 7" in line for line in lines)


def test_without_two_releases_that_ran_the_exit_code_is_2(saved_runs, walk):
    saved_runs.files.clear()
    code, lines, _ = walk()
    assert code == 2
    assert "0 of 4 releases of planted ran: nothing could be compared." in lines


def test_an_audit_that_failed_before_is_no_change(saved_runs, walk):
    for version in ("1.0", "3.0", "4.0"):
        saved_runs.add(version, FAILED)
    _, lines, releases = walk()
    assert releases["1.0"]["findings"] == [["audits", FAILS]]
    assert releases["4.0"]["findings"] == []
    assert "3 of 4 releases of planted ran; none changed anything." in lines


def test_a_cell_that_runs_now_and_an_audit_that_passes_now_are_changes(saved_runs, walk):
    saved_runs.add("1.0", [broken(CELLS[0]), FAILED[1]])
    saved_runs.add("3.0", EQUAL)
    _, _, releases = walk()
    assert ["cells", f"not run: {CELLS[0]}: OSError: no room"] in releases["1.0"]["findings"]
    assert releases["3.0"]["findings"] == [
        ["cells", f"run now: {CELLS[0]}"],
        ["audits", f"audit base_frozen no longer fails in {CELLS[1]}"],
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "tunegrid asks for no version of planted: say from which release, with --from"),
        ("--from new", "Invalid version: 'new'; give releases as --from 0.18 --to 0.20"),
        ("--from 1 -o page.pdf", "page.pdf: expected a name that ends in .json, .html, .md"),
        ("--from 1 --causes nowhere.toml", "nowhere.toml is no file of causes: "),
    ],
)
def test_what_cannot_be_walked_is_one_sentence(capsys, options, sentence):
    assert sentence in refusal(capsys, command.main, "history", "planted", *options.split())


def test_the_first_release_is_by_default_the_oldest_that_tunegrid_takes():
    assert history.supported_from("transformers").major == 5


# Going on


def saved_history(folder, library="planted", **fields):
    """A committed history of 1.0, which ran, and 2.0, which did not, in a folder."""
    releases = [{"version": "1.0", "answer": "the first"}, {"version": "2.0", "fault": "no room"}]
    values = {"library": library, "profile": "quick", "cells": CELLS, "cpu": "EPYC"}
    values |= {"suite": "0.22.0", "versions": {"python": "3.11"}, "releases": releases} | fields
    (folder / f"{library}.json").write_text(json.dumps(values))


@pytest.fixture
def committed(tmp_path, monkeypatch, saved_runs):
    """A committed history, after which 3.0 changed a cell's gradients and 4.0 is out of reach."""
    folder = tmp_path / "history"
    folder.mkdir()
    saved_history(folder)
    refusals = {"4.0": "no version fits"}
    monkeypatch.setattr(history, "FOLDER", folder)
    monkeypatch.setattr(history, "list_releases", lambda *arguments: ["3.0", "2.0"])
    listed = {Version("1.0"), Version("4.0")}  # uv does not list what a constraint forbids
    monkeypatch.setattr(history, "index_releases", lambda library: listed)
    monkeypatch.setattr(history, "pip_refusal", lambda library, number: refusals.get(number, ""))
    saved_runs.add("1.0", EQUAL)
    saved_runs.add("3.0", CHANGED)
    return folder


def read_releases(folder):
    releases = json.loads((folder / "planted.json").read_text())["releases"]
    return {release["version"]: release for release in releases}


def test_the_committed_history_goes_on_with_what_came_out_since(committed, saved_runs, run_command):
    (committed / "planted.toml").write_text('"3.0" = "planted#7"')
    code, lines = run_command("history")
    assert code == 0
    assert lines[0] == "New: planted 3.0, planted 4.0."
    # The last release that ran is measured again, since the suite may have changed.
    firsts = [line for line in saved_runs.sessions if "first-updates:" in line]
    assert [line.partition(" ")[0] for line in firsts] == ["1.0", "3.0"]
    releases = read_releases(committed)
    assert [*releases] == ["1.0", "2.0", "3.0", "4.0"]
    assert releases["3.0"]["before"] == "1.0"
    assert releases["3.0"]["changed_cells"] == [CELLS[1]]
    assert releases["3.0"]["cause"] == "planted#7"
    assert len(releases["3.0"]["suite"]) == 16
    assert releases["4.0"]["fault"] == "out of reach: no version fits"
    assert "| 4.0 | - | out of reach: no version fits | - |" in (
        (committed / "planted.md").read_text()
    )


def test_without_new_releases_the_first_line_says_so(committed, run_command, monkeypatch):
    monkeypatch.setattr(history, "list_releases", lambda *arguments: ["2.0"])
    monkeypatch.setattr(history, "index_releases", lambda library: set())
    code, lines = run_command("history")
    assert (code, lines[0]) == (0, "Nothing new came out since the history ends.")
    assert [*read_releases(committed)] == ["1.0", "2.0"]


def test_nothing_is_compared_across_a_change_of_the_suite(walk, monkeypatch):
    digests = iter(["a" * 64, "a" * 64, "b" * 64, "b" * 64])
    monkeypatch.setattr(history, "digest_files", lambda files: next(digests))
    _, _, releases = walk()
    assert [releases[number]["suite"] for number in ("1.0", "3.0", "4.0")] == [
        "a" * 16,
        "b" * 16,
        "b" * 16,
    ]
    assert (releases["3.0"]["before"], releases["3.0"]["findings"]) == ("", [])
    assert releases["3.0"]["answer"] == "the suite changed; compared with nothing"
    assert releases["4.0"]["before"] == "3.0"


def test_the_picture_has_a_mark_for_each_release_and_the_page_what_it_changed(
    committed, run_command
):
    run_command("history")
    picture = (committed / "history.svg").read_text()
    page = (committed / "history.html").read_text()
    kinds = {"1.0": "compared with nothing", "2.0": "did not run"}
    kinds |= {"3.0": "numerics", "4.0": "out of reach"}
    for number, kind in kinds.items():
        assert f'href="#planted-{number}"' in picture
        assert f"<h2>planted {number}: {kind}</h2>" in page
    assert f"<dt>cells</dt><dd>{CELLS[1]}</dd>" in page
    assert "1 of 1 changed" in picture
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


@pytest.mark.parametrize("option", ["--from=1.0", "--to=2.0", "--causes=c.toml", "-o=h.json"])
def test_options_of_one_library_need_its_name(run_command, option):
    code, lines = run_command(f"history {option}")
    assert code == 2
    assert "is for one library; give its name, too" in lines[-1]
