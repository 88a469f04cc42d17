"""`--gate` as a user meets it: one cell against a baseline that is the same, better, of other rows, or none."""

import json

import pytest

from tunegrid.record import from_json
from tunegrid.results import examples
from tunegrid.tests.test_suite import run

CELL = "gpt2_sa_lora"
UNTRAINED = ("-m", "quick", "--cells", CELL, "--set", "learning_rate=1e-7")  # some of its 16 rows go wrong
MANY = ("--set", "eval_rows=512")  # as many as it takes to tell that nothing changed


def file_of(folder, *options):
    code, output, _ = run(folder, "-m", "quick", "--cells", CELL, *options)
    assert code == 0, output
    return folder / "run.json"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The file of a small run."""
    return file_of(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def of_many_rows(tmp_path_factory):
    """The file of a small run that was scored on many rows."""
    return file_of(tmp_path_factory.mktemp("many"), *MANY)


def changed(path, target, change):
    """The same file with another record."""
    content = json.loads(path.read_text())
    for row in content["benchmarks"]:
        row["extra_info"] = change(row["extra_info"])
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content))
    return target


def all_right(record, folder, most=None):
    """A baseline in which every row was right, or so many more than were."""
    kept = examples.read(from_json(record), None)
    points, labels = list(kept.points["accuracy"]), list(kept.predictions)
    for place in [place for place, hit in enumerate(points) if not hit][:most]:
        points[place], labels[place] = 100.0, str(1 - int(labels[place]))
    better = examples.Examples(ids=kept.ids, points={"accuracy": points}, predictions=labels)
    scores = record["scores"] | {"accuracy": sum(points) / len(points)}
    return record | {"examples": vars(examples.write(better)), "scores": scores}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_same_run_again_passes_whatever_the_workers(of_many_rows, tmp_path, workers):
    code, output, _ = run(tmp_path, "-m", "quick", "--cells", CELL, *MANY, f"--gate={of_many_rows}", "-n", workers)
    assert code == 0, output
    assert "numerics of 1 cells: 1 equal; quality: 1 same" in output
    assert "By quality and memory no worse than run.json." in output


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_worse_run_fails_with_a_table_and_no_traceback(of_many_rows, tmp_path, workers):
    baseline = changed(of_many_rows, tmp_path / "b.json", lambda record: all_right(record, tmp_path))
    code, output, _ = run(tmp_path, "-m", "quick", "--cells", CELL, *MANY, f"--gate={baseline}", "-n", workers)
    assert code == 1
    assert f"worse: {CELL} accuracy" in output
    assert "Traceback" not in output


def test_what_a_small_test_set_cannot_tell_is_said_and_fails_only_where_that_counts(first, tmp_path):
    code, output, _ = run(tmp_path, *UNTRAINED)
    assert code == 0, output
    baseline = changed(tmp_path / "run.json", tmp_path / "b.json", lambda record: all_right(record, tmp_path, most=2))
    options = (*UNTRAINED, f"--gate={baseline}", "--resume")
    code, output, _ = run(tmp_path, *options)
    assert "cannot tell" in output
    assert code == 0
    code, output, _ = run(tmp_path, *options, "--gate-on=quality,memory,cannot-tell")
    assert "Cannot tell whether the run is worse than b.json: 1 cell cannot be told" in output
    assert code == 6


def test_a_run_whose_scores_could_not_be_tested_ends_with_6(first, tmp_path):
    """Another recipe, one seed a side, and no noise that was calibrated for so few rows."""
    code, output, _ = run(tmp_path, *UNTRAINED, f"--gate={first}")
    assert "give both runs --seeds 0-4" in output
    assert "no main score could be tested" in output
    assert code == 6


def test_other_test_rows_are_refused(first, tmp_path):
    other = {"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16}
    baseline = changed(first, tmp_path / "b.json", lambda record: record | {"examples": other})
    code, output, _ = run(tmp_path, "-m", "quick", "--cells", CELL, f"--gate={baseline}", "--resume")
    assert code == 1
    assert "scored different test rows (0000000000000000 and " in output


def test_a_baseline_of_another_grid_and_a_run_without_cells(first, tmp_path):
    baseline = changed(first, tmp_path / "b.json", lambda record: record | {"cell": "t5_qa_sft"})
    code, output, _ = run(tmp_path, "-m", "quick", "--cells", CELL, f"--gate={baseline}", "--resume")
    assert code == 1
    assert "Failed: the gate could not judge: the two runs have no cell in common" in output
    code, output, _ = run(tmp_path, f"--gate={first}", "lib/tunegrid/tests/test_progress.py")
    assert code == 1
    assert "Failed: the gate could not judge: no cell finished: there is nothing to judge" in output


@pytest.mark.parametrize(("text", "sentence"), [(None, "does not exist"), ('{"benchmarks": [', "is not a complete")])
def test_a_baseline_that_is_none_is_said_before_anything_trains(tmp_path, text, sentence):
    path = tmp_path / "baseline.json"
    if text:
        path.write_text(text)
    code, output, _ = run(tmp_path, "-m", "quick", "--cells", CELL, f"--gate={path}")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert sentence in output
    assert "collected" not in output
