"""Shards of a grid: disjoint, complete, balanced, the same on every machine; merged, they are what one machine runs."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tunegrid import ROOT
from tunegrid.commands import merge
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.record import to_json
from tunegrid.results.estimates import committed_runs
from tunegrid.results.files import current, read_list
from tunegrid.results.passing import beside_each_other
from tunegrid.results.shards import Case, Shard, case_of, check_divided_alike, missing, seconds_of_cells, shard_of, shared_out
from tunegrid.tests.test_docs import collected as sessions_of
from tunegrid.tests.test_options import collect, collected
from tunegrid.tests.test_record import MEASURED, PHASE, complete
from tunegrid.tests.test_results import saved

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"


def seeds_as(seed):
    return {"seed": seed, "split_seed": 42, "perturbation": None}


# By hand


def test_the_longest_goes_to_whoever_has_least():
    # 7 | 6 | 5; 4 to the third (9), 3 to the second (9), 2 to the first (9)
    assert shared_out({"a": 7.0, "b": 6.0, "c": 5.0, "d": 4.0, "e": 3.0, "f": 2.0}, 3) == [["a", "f"], ["b", "e"], ["c", "d"]]


def test_equal_ones_come_by_name_whatever_the_order_in_which_they_were_given():
    assert shared_out({"b": 1.0, "c": 1.0, "a": 1.0}, 2) == [["a", "c"], ["b"]]
    assert shared_out({"c": 1.0, "a": 1.0, "b": 1.0}, 2) == [["a", "c"], ["b"]]


def test_more_shares_than_units_leave_some_empty():
    assert shared_out({"a": 1.0}, 3) == [["a"], [], []]


# The grids that ship

GRIDS = {
    "quick": (STUDY.cells(QUICK_PROFILE), (0,)),
    "quick with five seeds": (STUDY.cells(QUICK_PROFILE), range(5)),
    "zoo": (zoo().cells(ZOO_PROFILE), (0,)),
    "full": (STUDY.cells(FULL_PROFILE), (0,)),
}


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("name", GRIDS)
def test_shards_are_disjoint_complete_and_balanced(name, count):
    cells, seeds = GRIDS[name]
    by_cell = seconds_of_cells(cells, committed_runs())
    seconds = {Case(cell.profile.id, cell.id, seed): by_cell[cell.id] for cell in cells for seed in seeds}
    shares = shared_out(seconds, count)
    assert sorted(chain(*shares)) == sorted(seconds)
    loads = [sum(seconds[case] for case in share) for share in shares]
    # Graham's bound: the longest share is at most the even one and the largest unit's part of it
    assert max(loads) <= sum(loads) / count + max(seconds.values()) * (1 - 1 / count) + 1e-6
    assert max(loads) - min(loads) <= max(seconds.values()) + 1e-6


def test_a_cell_never_measured_counts_as_those_of_its_backbone_and_task():
    cells = {cell.id: cell for cell in zoo().cells(ZOO_PROFILE)}
    seconds = seconds_of_cells(list(cells.values()), committed_runs())
    study = seconds_of_cells(STUDY.cells(QUICK_PROFILE), committed_runs())
    kin = [study[f"gpt2_sum_{method}"] for method in ("lora", "qlora", "sft")]
    assert seconds["gpt2_sum_dora"] == pytest.approx(sum(kin) / 3)
    assert seconds_of_cells(list(cells.values()), []) == dict.fromkeys(cells, 1.0)


# The command line


def ids(text):
    return re.findall(r"^benchmarks/test_finetune\.py::test_finetune\[(.+)\]$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "options",
    [("-m", "quick", "--seeds", "0,3"), ("-m", "full"), ("--cells", "bert_sa_lora,t5_qa_sft,t5_sa_sft"), ("-k", "_sa_")],
    ids=["quick with seeds", "full", "cells", "a word"],
)
def test_pytest_collects_each_test_in_one_shard(options):
    """A word, too, selects before shards are made."""
    sessions = [[*options], *([*options, "--shard", f"{number}/3"] for number in (1, 2, 3))]
    whole, *parts = [ids(text) for _, text in sessions_of(sessions)]
    assert all(parts)
    assert sorted(chain(*parts)) == sorted(whole)


def test_listing_names_the_cells_of_the_shard():
    options = ("-m", "quick", "--seeds", "0-1", "--shard", "2/3")
    *_, last = collect("--list-cells", *options).stdout.splitlines()
    assert re.match(r"shard 2/3: \d+ of 54 tests, by estimates [\d.]+ min of [\d.]+ min: bert_", last)
    assert last.split(": ")[2].split() == sorted({name.split("-")[0] for name in collected(*options)})


def test_only_what_is_committed_counts():
    """Neither this machine's own runs nor its journal."""
    tracked = subprocess.run(["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {str(path.relative_to(ROOT)) for path in committed_runs()} <= set(tracked.splitlines())


def test_or_the_file_that_all_machines_are_given(tmp_path):
    phases = {cell: {"train": PHASE | {"seconds": 1e6 if cell == "bert_sa_lora" else 1.0}} for cell in STUDY_IDS}
    records = [complete(cell, memory=MEASURED["memory"] | {"phases": phases[cell]}) for cell in STUDY_IDS]
    path = saved(tmp_path / "earlier.json", *records)
    # a million seconds: alone in its shard
    assert collected("-m", "quick", f"--estimates-from={path}", "--shard", "1/3") == ["bert_sa_lora"]


@pytest.mark.parametrize(
    ("shard", "sentence"),
    [
        ("0/2", "invalid --shard '0/2': expected I/N with I from 1 to N, as in 2/8 for the second of eight"),
        ("3/2", "invalid --shard '3/2': expected I/N"),
        ("2", "invalid --shard '2': expected I/N"),
        ("1/28", "--shard 1/28: 27 tests cannot fill 28 shards"),
    ],
)
def test_what_is_no_shard_is_one_sentence(shard, sentence):
    answer = collect("-m", "quick", "--shard", shard)
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in answer.stderr


# Sessions whose tests train nothing

CELLS = """
import pytest

@pytest.mark.cells("quick")
def test_cell(profile, backbone, task, method, seed, benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_shards_of_sessions_merge_to_what_one_session_has(tmp_path, workers):
    (tmp_path / "test_cells.py").write_text(CELLS)
    plugins = [f"-pfixtures.{name}" for name in ("options", "session", "selection", "sharding", "planning", "results")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "TUNEGRID_CACHE": str(tmp_path / "cache")}
    for number in (1, 2):
        command = [sys.executable, "-m", "pytest", *plugins, "--cells=bert_sa_lora,t5_sa_sft", "--seeds=0-1"]
        command += [f"--shard={number}/2", "-n", workers, f"--benchmark-json=part{number}.json", "test_cells.py"]
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        line = rf"^shard {number}/2: 2 of 4 tests, by estimates [\d.]+ \w+ of [\d.]+ \w+$"
        assert re.search(line, answer.stdout, re.MULTILINE), answer.stdout
    parts = [str(tmp_path / f"part{number}.json") for number in (1, 2)]
    assert merge.main([*parts, "-o", str(tmp_path / "merged.json")]) == 0
    expected = [f"{cell}-seed{seed}" for cell in ("bert_sa_lora", "t5_sa_sft") for seed in (0, 1)]
    assert [row["param"] for row in json.loads((tmp_path / "merged.json").read_text())["benchmarks"]] == expected
    assert merge.main([parts[0], "-o", str(tmp_path / "half.json")]) == 1


# Merging


def as_shards(folder, run, count):
    """The files of a run's shards: each audited by itself, as its session does."""
    path = folder / "whole.json"
    path.write_text(json.dumps(run))
    records = read_list(path)
    rows = {case_of(record): row for record, row in zip(records, run["benchmarks"], strict=True)}
    own = {case_of(record): record for record in records}
    paths = []
    for number, share in enumerate(shared_out(dict.fromkeys(own, 1.0), count), start=1):
        told = beside_each_other([own[case] for case in share])
        shard = Shard(number=number, of=count, whole=frozenset(own))
        part = [rows[case] | {"extra_info": to_json(record)} for case, record in zip(share, told, strict=True)]
        paths.append(folder / f"shard-{number}.json")
        paths[-1].write_text(json.dumps(run | {"benchmarks": part, "shard": shard.to_json()}))
    return paths


def test_merged_shards_have_the_rows_of_one_run(tmp_path):
    run = json.loads(BASELINE.read_text())
    paths = as_shards(tmp_path, run, 4)
    assert merge.main([*map(str, paths), "-o", str(tmp_path / "merged.json")]) == 0
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert "shard" not in merged
    by_name = {row["fullname"]: row for row in merged["benchmarks"]}
    assert by_name == {row["fullname"]: current(row, "")[0] for row in run["benchmarks"]}


def test_what_two_shards_show_together_is_found_where_they_are_merged(tmp_path):
    """A copied result: each shard alone has nothing beside it."""
    twins = [complete(cell, scores={"accuracy": 90.0}, seeds=seeds_as(0)) for cell in ("t5_sa_lora", "t5_sa_sft")]
    run = {"version": "5.3", "benchmarks": [{"fullname": record.cell, "extra_info": to_json(record)} for record in twins]}
    paths = as_shards(tmp_path, run, 2)
    assert all(read_list(path)[0].status == "passed" for path in paths)
    assert merge.main([*map(str, paths), "-o", str(tmp_path / "merged.json")]) == 1
    assert [record.missed for record in read_list(tmp_path / "merged.json")] == [
        ["audit distinct_results: the results are those of t5_sa_sft (t5_sa_lora, quick, seed 0)"],
        ["audit distinct_results: the results are those of t5_sa_lora (t5_sa_sft, quick, seed 0)"],
    ]
    assert merge.main([str(tmp_path / "merged.json"), "-o", str(tmp_path / "again.json")]) == 1
    assert read_list(tmp_path / "again.json") == read_list(tmp_path / "merged.json")


def test_a_shard_that_left_no_file_is_named_with_its_cells(tmp_path, capsys):
    records = [complete(cell, seeds=seeds_as(1)) for cell in ("bert_sa_lora", "t5_qa_sft", "t5_sa_sft")]
    run = {"version": "5.3", "benchmarks": [{"fullname": record.cell, "extra_info": to_json(record)} for record in records]}
    first, _, third = as_shards(tmp_path, run, 3)
    assert merge.main([str(first), str(third), "-o", str(tmp_path / "merged.json")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "no file of shard 2/3",
        "1 of 3 runs are missing: t5_qa_sft (quick, seed 1)",
    ]
    assert len(read_list(tmp_path / "merged.json")) == 2  # what is there is kept


def test_a_cell_that_left_no_row_is_named():
    whole = frozenset({Case("quick", "bert_sa_lora", 0), Case("quick", "t5_sa_sft", 0)})
    both = [Shard(number=number, of=2, whole=whole) for number in (1, 2)]
    assert missing(both, whole) == []
    assert missing(both, {Case("quick", "t5_sa_sft", 0)}) == ["1 of 2 runs are missing: bert_sa_lora (quick, seed 0)"]
    assert missing([], set()) == []


def test_shards_that_overlap_are_refused(tmp_path, capsys):
    """As of two machines with other estimates."""
    old, new = (complete(seeds=seeds_as(0), scores={"accuracy": points}) for points in (90.0, 91.0))
    paths = []
    for number, record in enumerate((old, new), start=1):
        shard = Shard(number=number, of=2, whole=frozenset({case_of(old)}))
        rows = [{"fullname": "test_finetune[bert_sa_lora]", "extra_info": to_json(record)}]
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"version": "5.3", "benchmarks": rows, "shard": shard.to_json()}))
    with pytest.raises(SystemExit):
        merge.main([*map(str, paths), "-o", str(tmp_path / "merged.json")])
    assert "test_finetune[bert_sa_lora] with seed 0 is in " in capsys.readouterr().err
    assert not (tmp_path / "merged.json").exists()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            Shard(number=2, of=3, whole=frozenset({Case("quick", "a_b_c", 0)})),
            "a is shard 1/2 and b is shard 2/3: merge the shards of one division",
        ),
        (
            Shard(number=2, of=2, whole=frozenset({Case("quick", "a_b_c", 1)})),
            "a and b are shards of different runs, of which one alone has a_b_c (quick, seed 0): give all the same -m, --cells",
        ),
    ],
)
def test_shards_of_other_divisions_are_refused(other, sentence):
    one = Shard(number=1, of=2, whole=frozenset({Case("quick", "a_b_c", 0)}))
    with pytest.raises(InputError, match=re.escape(sentence)):
        check_divided_alike({Path("a"): one, Path("b"): other})


def test_a_shard_reads_back_as_it_was_written():
    shard = Shard(number=1, of=2, whole=frozenset({Case("quick", "bert_sa_lora", 0)}))
    assert shard_of(json.loads(json.dumps({"shard": shard.to_json()})), Path("a")) == shard
    assert shard_of({}, Path("a")) is None
    with pytest.raises(InputError, match=r"a does not say which shard it is \(KeyError: 'of'\)"):
        shard_of({"shard": {"number": 1}}, Path("a"))
