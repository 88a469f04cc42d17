"""A library's history, by runs that are saved for each release: what is compared, and what the
table says.
"""

import json

import pytest

from tunegrid.commands import history
from tunegrid.tests.commands.test_upgrade import CELLS, OBJECTING, OTHER, broken
from tunegrid.tests.records import begun, get_record, hits, run_file


@pytest.fixture
def walked(saved_runs, said, monkeypatch, tmp_path):
    """Exit code, lines and releases by version of a walk over four releases, of which 3.0 changes a
    cell's gradients.
    """
    folder = saved_runs.folder
    run_file(folder / "first.json", [begun(cell) for cell in CELLS])
    run_file(folder / "other.json", [begun(CELLS[0]), begun(CELLS[1], training=OTHER)])
    monkeypatch.setattr(history, "list_releases", lambda *arguments: ["4.0", "3.0", "2.0", "1.0"])
    files = {"1.0": "first.json", "2.0": "absent.json", "3.0": "other.json", "4.0": "other.json"}
    saved_runs.files |= {(version, "first-updates"): file for version, file in files.items()}

    def walk(*options):
        path = tmp_path / "history.json"
        code, lines = said(history.main, ["planted", "--from", "1.0", "-o", str(path), *options])
        releases = json.loads(path.read_text())["releases"] if path.exists() else []
        return code, lines, {release["version"]: release for release in releases}

    return walk


def test_each_release_is_measured_once_and_compared_with_the_last_that_ran(saved_runs, walked):
    code, lines, releases = walked()
    assert (code, [*releases]) == (0, ["1.0", "2.0", "3.0", "4.0"])
    assert [version for version, *_ in saved_runs.asked] == ["1.0", "2.0", "3.0", "4.0"]
    assert releases["2.0"]["fault"].startswith("no cell runs with planted 2.0: ")
    assert (releases["3.0"]["before"], releases["3.0"]["changed_cells"]) == ("1.0", [CELLS[1]])
    assert (releases["4.0"]["before"], releases["4.0"]["numerics"]) == ("3.0", "2 equal")
    [finding] = releases["3.0"]["findings"]
    assert finding[0] == "numerics"
    assert finding[1].startswith(f"1 cell, as {CELLS[1]}: ")
    assert releases["4.0"]["findings"] == []
    assert "3 of 4 releases of planted ran; 1 changed something: 3.0 (numerics 1)." in lines


def test_a_release_in_which_every_cell_breaks_off_did_not_run(saved_runs, walked):
    run_file(saved_runs.folder / "broken.json", [broken(cell) for cell in CELLS])
    saved_runs.files |= {("3.0", "first-updates"): "broken.json"}
    _, lines, releases = walked()
    assert releases["3.0"]["fault"] == "no cell finishes with planted 3.0: OSError: no room"
    assert (releases["4.0"]["before"], releases["4.0"]["changed_cells"]) == ("1.0", [CELLS[1]])
    assert "2 of 4 releases of planted ran; 1 changed something: 4.0 (numerics 1)." in lines


def test_a_release_that_cannot_be_compared_is_a_row_and_no_end(saved_runs, walked):
    run_file(saved_runs.folder / "zoo.json", [begun(cell, profile="zoo") for cell in CELLS])
    saved_runs.files |= {("3.0", "first-updates"): "zoo.json"}
    code, _, releases = walked()
    assert "one profile" in releases["3.0"]["fault"]
    assert (code, releases["4.0"]["before"]) == (0, "1.0")


def test_a_cell_that_changed_trains_to_its_end_with_whole(saved_runs, walked):
    run_file(saved_runs.folder / "whole.json", [get_record(CELLS[1], {"accuracy": hits(512, 480)})])
    worse = get_record(CELLS[1], {"accuracy": hits(512, 416)}, training=OTHER)
    run_file(saved_runs.folder / "worse.json", [worse])
    saved_runs.files |= {("1.0", "whole"): "whole.json", ("3.0", "whole"): "worse.json"}
    _, _, releases = walked("--whole")
    assert [arguments for _, stage, arguments in saved_runs.asked if stage == "whole"] == [
        f"-m quick --cells {CELLS[1]} --resume -n auto"
    ] * 2
    [_, (kind, sentence)] = releases["3.0"]["findings"]
    assert kind == "quality"
    assert sentence.startswith(f"worse: {CELLS[1]} accuracy -12.50 points (")


def test_an_audit_that_fails_is_in_the_row_and_a_persons_cause_too(saved_runs, walked, tmp_path):
    run_file(saved_runs.folder / "failed.json", [begun(CELLS[0]), OBJECTING])
    saved_runs.files |= {("4.0", "first-updates"): "failed.json"}
    causes = tmp_path / "causes.toml"
    causes.write_text('"4.0" = "pull request 7: a base that trains"\n')
    _, lines, releases = walked("--causes", str(causes))
    sentence = f"audit base_frozen fails in {CELLS[1]}: one changed"
    assert ["audits", sentence] in releases["4.0"]["findings"]
    assert (releases["4.0"]["cause"], releases["3.0"]["cause"]) == (
        "pull request 7: a base that trains",
        "",
    )
    assert any("pull request 7" in line for line in lines)


def test_without_two_releases_that_ran_the_exit_code_is_2(saved_runs, walked):
    saved_runs.files |= {
        (version, "first-updates"): "absent.json" for version in ("1.0", "3.0", "4.0")
    }
    code, lines, _ = walked()
    assert (code, "0 of 4 releases of planted ran: nothing could be compared." in lines) == (
        2,
        True,
    )


def test_an_audit_that_failed_before_is_no_change(saved_runs, walked):
    run_file(saved_runs.folder / "failed.json", [begun(CELLS[0]), OBJECTING])
    for version in ("1.0", "3.0", "4.0"):
        saved_runs.files[version, "first-updates"] = "failed.json"
    _, lines, releases = walked()
    sentence = f"audit base_frozen fails in {CELLS[1]}: one changed"
    assert releases["1.0"]["findings"] == [["audits", sentence]]
    assert releases["4.0"]["findings"] == []
    assert "3 of 4 releases of planted ran; none changed anything." in lines


def test_what_is_mended_is_a_change_too(saved_runs, walked):
    run_file(saved_runs.folder / "failed.json", [broken(CELLS[0]), OBJECTING])
    saved_runs.files["1.0", "first-updates"] = "failed.json"
    run_file(saved_runs.folder / "sound.json", [begun(cell) for cell in CELLS])
    saved_runs.files["3.0", "first-updates"] = "sound.json"
    _, _, releases = walked()
    assert ["cells", f"not run: {CELLS[0]}: OSError: no room"] in releases["1.0"]["findings"]
    assert releases["3.0"]["findings"] == [
        ["cells", f"run now: {CELLS[0]}"],
        ["audits", f"audit base_frozen no longer fails in {CELLS[1]}"],
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["planted"],
            "tunegrid asks for no version of planted: say from which release, with --from",
        ),
        (
            ["planted", "--from", "new"],
            "Invalid version: 'new'; give releases as --from 0.18 --to 0.20",
        ),
        (
            ["planted", "--from", "1", "-o", "page.pdf"],
            "page.pdf: expected a name that ends in .json, .html, .md",
        ),
        (
            ["planted", "--from", "1", "--causes", "nowhere.toml"],
            "nowhere.toml is no file of causes: ",
        ),
    ],
)
def test_what_cannot_be_walked_is_one_sentence(said, arguments, sentence):
    code, lines = said(history.main, arguments)
    assert (code, sentence in lines[-1]) == (2, True), lines


def test_the_first_release_is_by_default_the_oldest_that_tunegrid_takes():
    assert history.supported_from("transformers").major == 5
