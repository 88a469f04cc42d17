"""Several seeds in one run, and a gate that trains more of them: ids, rows, table, journal, commands."""

import json
import re
import shutil

import pytest

from fixtures.options import changes_recipes, profile_from, seeds_of
from tunegrid.commands import audit, baseline, finish, merge, numerics, scores
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import to_json
from tunegrid.results import run_table
from tunegrid.results.files import read_list
from tunegrid.results.journal import latest
from tunegrid.results.passing import beside_each_other
from tunegrid.results.record_checks import unlike_pairs
from tunegrid.tests.test_options import collect, collected, option_values
from tunegrid.tests.test_record import MEASURED, complete
from tunegrid.tests.test_suite import run

PAIR = ("-m", "quick", "--cells", "bert_sa_lora,bert_sa_sft", "--max-steps", "4")
IDS = ["bert_sa_lora-seed0", "bert_sa_lora-seed2", "bert_sa_sft-seed0", "bert_sa_sft-seed2"]


def ids_in(path):
    return [row["param"] for row in json.loads(path.read_text())["benchmarks"]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """One cell with `--seed 2`: its file, and its record."""
    folder = tmp_path_factory.mktemp("alone")
    options = ("-m", "quick", "--cells", "bert_sa_lora", "--max-steps", "4", "--seed", "2")
    code, output, [record] = run(folder, *options, TUNEGRID_CACHE=str(cache))
    assert code == 0, output
    return folder / "run.json", record


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two cells with `--seeds 0,2`: the folder of the file, with a cache of its own, and the output."""
    folder = tmp_path_factory.mktemp("together")
    code, output, _ = run(folder, *PAIR, "--seeds", "0,2", TUNEGRID_CACHE=str(folder / "cache"))
    assert code == 0, output
    return folder, output


# The command line


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (3,)), ("0-4", (0, 1, 2, 3, 4)), ("0,2,5-7", (0, 2, 5, 6, 7)), ("7, 1-2,2", (7, 1, 2))]
)
def test_seeds_are_listed_and_ranged(text, seeds):
    ids = collected("--cells", "bert_sa_lora", "--seeds", text)
    assert ids == [f"bert_sa_lora-seed{seed}" for seed in seeds]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--seeds", "4-0"), "--seeds '4-0' is no list of seeds: whole numbers from 0 to 4294967295, at most 100 of them"),
        (("--seeds", "0,,1"), "--seeds '0,,1' is no list of seeds"),
        (("--seeds", "-1"), "--seeds '-1' is no list of seeds"),
        (("--seeds", "0-100"), "--seeds '0-100' is no list of seeds"),
        (("--seeds", "4294967296"), "--seeds '4294967296' is no list of seeds"),
        (("--seeds", "0-4", "--seed", "0"), "--seed runs every cell with one seed, --seeds with several: give one of the two"),
        (("--gate-budget", "5m"), "--gate-budget 5m is for seeds that a gate lacks: give --gate FILE, too"),
        (("--gate-budget", "5", "--gate=x.json"), "invalid --gate-budget '5': expected a duration, as in 30m, 90s or 1h30m"),
        (("--perturb", "0"), "--perturb '0' is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(options, sentence):
    answer = collect(*options)
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line]
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert len(lines) == 1
    assert sentence in lines[0]


def test_one_seed_and_the_first_of_several_make_a_profile():
    assert seeds_of(option_values()) == (0,)
    assert seeds_of(option_values(seed=3)) == (3,)
    assert profile_from(option_values(seeds=(5, 6)), "quick").seed == 5
    assert profile_from(option_values(seeds=(5, 6)), "quick", seed=6).seed == 6


def test_a_perturbed_run_is_held_to_the_bounds():
    assert profile_from(option_values(perturb=3), "quick").perturbation == 3
    assert not changes_recipes(option_values(perturb=3, seeds=(0, 1)))


def test_a_plan_counts_the_seeds_and_a_budget_buys_whole_grids_first(tmp_path):
    phases = {"train": MEASURED["memory"]["phases"]["load"] | {"seconds": 30.0}}
    records = [complete(cell, memory=MEASURED["memory"] | {"phases": phases}) for cell in ("bert_sa_lora", "t5_sa_sft")]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"benchmarks": [{"extra_info": to_json(record)} for record in records]}))
    options = ("--cells", "bert_sa_lora,t5_sa_sft", "--seeds", "0-2", f"--estimates-from={earlier}")
    listing = collect("--list-cells", *options).stdout.splitlines()
    assert listing[-1] == "2 cells with 3 seeds each, 3.0 min one after the other for the 2 with an estimate"  # 6 x 30 s
    ids = collected(*options, "--budget", "110s")  # 15 s for the session, then 30 s each: three fit
    assert {ids[0], ids[1]} == {"bert_sa_lora-seed0", "t5_sa_sft-seed0"}
    assert [name.split("-")[1] for name in ids[2:]] == ["seed1"]


# One run


def test_one_file_holds_a_row_and_examples_for_every_seed(together):
    folder, _ = together
    assert ids_in(folder / "run.json") == IDS
    records = read_list(folder / "run.json")
    assert [record.seeds.seed for record in records] == [0, 2, 0, 2]
    assert all((folder / "examples" / record.examples.file).is_file() for record in records)


def test_a_seed_among_others_is_that_seed_alone(together, alone):
    among, by_itself = json.loads((together[0] / "run.json").read_text())["benchmarks"][1]["extra_info"], alone[1]
    assert among["seeds"] == by_itself["seeds"]
    assert among["scores"] == by_itself["scores"]
    assert among["training"]["losses"] == by_itself["training"]["losses"]


def test_the_table_has_a_row_a_cell_with_mean_and_spread(together):
    _, output = together
    rows = [line.split() for line in output.splitlines() if line.startswith(("bert_sa_lora ", "bert_sa_sft "))]
    assert [row[:3] for row in rows] == [["bert_sa_lora", "accuracy", "2"], ["bert_sa_sft", "accuracy", "2"]]
    assert re.search(r"^4 of 4 runs of 2 cells passed, 4 of them too short for some audit, in \d+ s", output, re.MULTILINE)


def test_a_seed_that_passed_under_another_name_is_resumed_under_its_own(tmp_path, cache, alone):
    options = ("-m", "quick", "--cells", "bert_sa_lora", "--max-steps", "4", "--seeds", "2", "--resume")
    code, output, records = run(tmp_path, *options, "-n", "1", TUNEGRID_CACHE=str(cache))
    assert code == 0, output
    assert "resumed 1 cells that had passed with all the same: bert_sa_lora-seed2" in output
    assert ids_in(tmp_path / "run.json") == ["bert_sa_lora-seed2"]
    assert records[0]["throughput"] == alone[1]["throughput"]  # it was not measured again


# The table, by hand


def test_a_line_over_seeds_has_mean_deviation_and_the_lowest():
    # sd: the root of (4 + 0 + 4) / 2
    seeds = [complete(scores={"accuracy": score}, seeds=seeds_as(n)) for n, score in enumerate([89.0, 91.0, 93.0])]
    assert [run_table.header(seeds), *(line for line, _ in run_table.rows(seeds))] == [
        "cell            score        seeds   mean    sd lowest  bound  train s  peak GiB  status",
        "bert_sa_lora    accuracy         3   91.0  2.00   89.0   88.0     12.2      1.25  passed",
    ]


def test_a_cell_passed_where_it_passed_with_every_seed():
    seeds = [complete(seeds=seeds_as(0)), complete(seeds=seeds_as(1), status="missed", missed=["why"])]
    other = complete("t5_qa_sft", seeds=seeds_as(0))
    [(line, status), (single, _)] = run_table.rows([*seeds, other])
    assert (line[-13:], status) == ("1 of 2 passed", "missed")
    assert single.split()[2:5] == ["1", "-", "-"]  # it has no f1
    assert run_table.footer([*seeds, other], 1.0) == "2 of 3 runs of 2 cells passed in 1 s on a CPU"


def test_a_perturbed_run_says_so():
    moved = complete(seeds=seeds_as(0) | {"perturbation": 3})
    assert run_table.footer([moved], 1.0).endswith("on a CPU; starts perturbed by draw 3: this run cannot be a baseline")


def seeds_as(seed):
    return {"seed": seed, "split_seed": 42, "perturbation": None}


# Cells beside others


def test_each_seed_is_compared_by_itself():
    rows = MEASURED["data"] | {"fingerprint": "f" * 16}
    twins = [complete("t5_sa_lora", scores={"accuracy": 90.0}, seeds=seeds_as(seed)) for seed in (0, 1)]
    sft = complete("t5_sa_sft", scores={"accuracy": 91.0}, data=rows, seeds=seeds_as(1))
    told = beside_each_other([*twins, sft])
    assert [record.status for record in told] == ["passed", "missed", "missed"]
    assert "other rows than t5_sa_sft (t5_sa_lora, quick, seed 1)" in told[1].missed[0]


def test_methods_are_like_for_like_within_a_seed():
    lora, longer = complete("t5_sa_lora", seeds=seeds_as(0)), complete("t5_sa_sft", seeds=seeds_as(1))
    longer.training.updates = 9
    assert unlike_pairs([lora, longer]) == []
    longer.seeds.seed = 0
    assert unlike_pairs([lora, longer]) == ["t5_sa_lora and t5_sa_sft: updates"]


# Commands on a file of several seeds


def test_commands_take_a_file_of_several_seeds(together, tmp_path, capsys):
    folder, _ = together
    path = folder / "run.json"
    assert audit.main([str(path)]) == 0  # so few updates teach nothing, and are not asked to
    assert re.findall(r"learned\S+something: .* \((\w+), quick, seed (\d)\)$", capsys.readouterr().out, re.MULTILINE) == [
        tuple(name.split("-seed")) for name in IDS
    ]
    assert scores.main([str(path), str(path)]) == 0
    assert "identical: 32 scores of 2 cells" in capsys.readouterr().out
    assert numerics.main([str(path), str(path)]) == 0
    assert capsys.readouterr().out.count("equal") >= 4
    assert len(finish.finish(latest(folder / "cache" / "journal"), tmp_path / "finished.json").records) == 4
    assert ids_in(tmp_path / "finished.json") == IDS
    assert merge.main([str(path), str(path), "-o", str(tmp_path / "merged.json")]) == 0
    assert ids_in(tmp_path / "merged.json") == IDS


def test_a_difference_names_the_seed(together, tmp_path, capsys):
    folder, _ = together
    content = json.loads((folder / "run.json").read_text())
    content["benchmarks"][1]["extra_info"]["scores"]["accuracy"] = 1.0
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert scores.main([str(folder / "run.json"), str(tmp_path / "other.json")]) == 1
    assert re.match(r"bert_sa_lora seed 2: accuracy [\d.]+ and 1.0$", capsys.readouterr().out.strip())


def test_a_seed_that_two_files_name_differently_is_a_conflict(together, alone, tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge.main([str(together[0] / "run.json"), str(alone[0]), "-o", str(tmp_path / "merged.json")])
    assert "test_finetune[bert_sa_lora] with seed 2 is in " in capsys.readouterr().err


def grid_file(path, seeds, change=lambda records: records):
    """A clean run of the study's cells with these seeds."""
    records = change([complete(cell, seeds=seeds_as(seed)) for seed in seeds for cell in STUDY_IDS])
    rows = [{"name": f"{r.cell}-seed{r.seeds.seed}", "extra_info": to_json(r)} for r in records]
    path.write_text(json.dumps({"commit_info": {"dirty": False}, "benchmarks": rows}))
    return path


def test_one_file_of_five_seeds_makes_a_baseline(tmp_path, capsys):
    assert baseline.main([str(grid_file(tmp_path / "run.json", range(5))), str(tmp_path / "to.json")]) == 0
    assert capsys.readouterr().out.endswith("135 records of 1 runs\n")
    assert sorted({record.seeds.seed for record in read_list(tmp_path / "to.json")}) == [0, 1, 2, 3, 4]


def perturbed(records):
    records[3].seeds.perturbation = 7
    return records


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda records: records[:-1],
            "a baseline needs the study's cells; 1 of 27 are missing, t5_sa_sft among them (seed 1)",
        ),
        (perturbed, f"{STUDY_IDS[3]} started perturbed (--perturb 7), which measures what rounding does"),
    ],
)
def test_what_is_no_baseline_is_said(tmp_path, capsys, change, reason):
    path = grid_file(tmp_path / "run.json", (0, 1), change)
    with pytest.raises(SystemExit):
        baseline.main([str(path), str(tmp_path / "to.json")])
    assert f"cannot be a baseline: {reason}" in capsys.readouterr().err


# A gate that asks for more

# A gate in the place of the real one: a cell can be told with so many seeds. The last cell promises most.
GATE = """
from tunegrid.results import gates, looks
from tunegrid.results.judgements import Judgement, Verdict

NEEDED = {"bert_sa_lora": 3, "bert_sa_sft": 2}

def gate(old, new, *, look=1, looks=1):
    counts = {cell: len(seeds) for cell, seeds in new.records.items()}
    return [
        Judgement(
            cell=cell, main_score="accuracy", quantity="accuracy", effect=-1.5, low=-4.0, high=1.0,
            verdict=Verdict.SAME if counts[cell] >= NEEDED[cell] else Verdict.CANNOT_TELL, detail=f"look {look} of {looks}",
        )
        for cell in new.records
    ]

gates.gate, promising = gate, looks.promising
looks.promising = lambda judged: promising(judged)[::-1]
"""


def gated(folder, together, *options):
    """Two cells of seed 0 before a baseline of seeds 0 and 2; what the baseline's own run journaled is resumed."""
    shutil.copytree(together[0] / "cache", folder / "cache")
    (folder / "simple_gate.py").write_text(GATE)
    gate = ("-p", "simple_gate", f"--gate={together[0] / 'run.json'}", "--gate-strict", "--resume")
    return run(folder, *PAIR, *gate, *options, PYTHONPATH=str(folder), TUNEGRID_CACHE=str(folder / "cache"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_cannot_be_told_gets_the_baselines_next_seeds_until_it_can(together, tmp_path, workers):
    code, output, records = gated(tmp_path, together, "--gate-budget", "5m", "-n", workers)
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith(("gate, look", "  seed"))]
    why = "which it cannot tell: accuracy -1.5 points, between -4.0 and +1.0"
    said = [re.sub(", [^,]* left:", "", line) for line in lines]
    assert [said[0], *sorted(said[1:3]), *said[3:]] == [  # equally promising ones in the order in which they ended
        "gate, look 2 of at most 4",
        f"  seed 2 for bert_sa_lora, {why}",
        f"  seed 2 for bert_sa_sft, {why}",
        "gate, look 3 of at most 4",
        f"  seed 1 for bert_sa_lora, {why}",
    ]
    names = ["bert_sa_lora-seed1", "bert_sa_lora-seed2", "bert_sa_lora", "bert_sa_sft-seed2", "bert_sa_sft"]
    assert ids_in(tmp_path / "run.json") == names
    assert [record["seeds"]["seed"] for record in records] == [1, 2, 0, 2, 0]
    assert re.search(r"^bert_sa_lora +accuracy +3 ", output, re.MULTILINE)
    assert "quality: 2 same" in output
    assert "1 passed, 4 skipped" in output
    finish.finish(latest(tmp_path / "cache" / "journal"), tmp_path / "finished.json")
    assert ids_in(tmp_path / "finished.json") == names


def test_without_time_for_another_seed_the_gate_says_what_it_cannot_tell(together, tmp_path):
    code, output, records = gated(tmp_path, together, "--gate-budget", "10s")
    assert (code, len(records)) == (6, 2)  # it was asked to be strict
    assert "after 1 of 4 looks it cannot tell bert_sa_sft, bert_sa_lora: no other seed fits into what is left of 10s" in output
