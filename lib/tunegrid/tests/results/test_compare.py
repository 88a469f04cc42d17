"""Methods beside each other: fronts, intervals and groups, on records whose answers are known by hand."""

import random
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tunegrid import ROOT
from tunegrid.commands import compare as command
from tunegrid.errors import InputError
from tunegrid.results.compare import (
    PEAK,
    SECONDS,
    SHARED,
    TENSORS,
    TRAINED,
    Comparison,
    Entry,
    as_markdown,
    as_text,
    chance_of,
    combined,
    compact_letters,
    compared,
    entry_of,
    front,
    remarks,
    row_error,
    summary,
)
from tunegrid.results.files import read_list
from tunegrid.results.noise import Deviation, Noise, load_noise
from tunegrid.results.table import markdown
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import FOOTPRINT, MEASURED, PHASE, complete, hits, record_of, saved, seeds_as

pytestmark = pytest.mark.usefixtures("store")


MANY = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 10_000}}  # so that rows resolve small deviations
COSTS_BY_CELL = {  # trained bytes, GiB, seconds
    "bert_sa_sft": (300, 1.0, 10.0),
    "bert_sa_lora": (300, 1.1, 12.0),
    "bert_sa_qlora": (100, 0.9, 8.0),
}


def measured(cell, score, seed=0, **changes):
    """A record of a method, with its costs and without points by row."""
    trained, peak, seconds = COSTS_BY_CELL.get(cell, (300, 1.0, 10.0))
    ledger = MEASURED["memory"]["ledger"] | {"checkpoint_bytes": trained}
    task = cell.split("_")[1]
    parts = {
        "scores": {{"sa": "accuracy", "qa": "f1"}[task]: score},
        "bounds": {},
        "examples": None,
        "data": MANY,
        "seeds": seeds_as(seed),
        "memory": {"phases": {"train": PHASE | {"rss_peak_gib": peak}}, "ledger": ledger, "cells_before": 0},
        "training": MEASURED["training"] | {"seconds": seconds + seed},
    }
    return complete(cell, **parts | changes)


def comparisons(records, noise=None, path=Path("run.json")):
    return compared({path: records}, noise or Noise())


def alone(records, **options):
    [comparison] = comparisons(records, **options)
    return comparison


def three_on_two_seeds():
    """Means 90, 83 and 76; each method's deviation is the square root of 2."""
    pairs = {"bert_sa_sft": (89.0, 91.0), "bert_sa_lora": (82.0, 84.0), "bert_sa_qlora": (75.0, 77.0)}
    return [measured(cell, score, seed) for cell, scores in pairs.items() for seed, score in enumerate(scores)]


# Three methods on two seeds


def test_three_methods_on_two_seeds_by_hand():
    comparison = alone(three_on_two_seeds())
    # A mean of two has variance 2 / 2 and one degree of freedom; a difference of two means 2 and two degrees: t is 7 / sqrt 2
    # and 14 / sqrt 2. For two degrees p is 1 - t / sqrt(t ** 2 + 2), and Holm takes the smallest of three p-values three times.
    p = {"".join(sorted(pair)): value for pair, value in comparison.p_values.items()}
    assert p["lorasft"] == p["loraqlora"] == pytest.approx(1 - 7 / (49 + 4) ** 0.5)  # 0.038, by Holm 0.077
    assert p["qlorasft"] == pytest.approx(1 - 14 / (196 + 4) ** 0.5)  # 0.010, by Holm 0.030
    assert comparison.groups == {"sft": "a", "lora": "ab", "qlora": "b"}
    assert comparison.best == ["sft", "lora"]
    standing = {entry.method: comparison.standing(entry) for entry in comparison.entries}
    assert standing == {"sft": ("yes", ""), "lora": ("no", "sft"), "qlora": ("yes", "")}
    assert comparison.on_front(TRAINED) == comparison.on_front(PEAK) == comparison.on_front(SECONDS) == ["sft", "qlora"]
    [sft, *_] = comparison.entries
    assert sft.costs == {TRAINED: 300, TENSORS: 4300, PEAK: 1.0, SECONDS: 10.5}
    interval = comparison.chance.interval(comparison.entries[2])
    # t of one degree of freedom is 12.706, the error sqrt(2) / sqrt(2)
    assert (interval.low, interval.high) == (pytest.approx(76 - 12.706, abs=1e-3), pytest.approx(76 + 12.706, abs=1e-3))
    assert interval.by == "2 seeds"


def test_a_better_score_that_noise_may_explain_is_perhaps_on_the_front():
    records = [measured("bert_sa_sft", score, seed) for seed, score in enumerate((77.0, 79.0))]
    records += [measured("bert_sa_qlora", score, seed) for seed, score in enumerate((75.0, 77.0))]
    comparison = alone(records)
    assert [comparison.standing(entry) for entry in comparison.entries] == [("perhaps", "qlora"), ("yes", "")]
    assert comparison.groups == {"sft": "a", "qlora": "a"}
    records = [*three_on_two_seeds()[:5]]  # qlora has one seed
    comparison = alone(records)
    assert comparison.chance.interval(comparison.entries[2]).by == "others' seeds"
    assert comparison.p_values[frozenset(("sft", "qlora"))] is not None


# Chance


def test_calibrated_noise_tells_what_one_seed_of_each_cannot():
    known = {(f"bert_sa_{method}", "accuracy"): Deviation(sd=1.0, df=9.0) for method in ("sft", "lora", "qlora")}
    noise = Noise(profile="quick", rows={"sa": 10_000}, measured={"seeds": known})
    records = [measured("bert_sa_sft", 90.0), measured("bert_sa_lora", 80.0)]
    comparison = alone(records, noise=noise)
    assert comparison.groups == {"sft": "a", "lora": "b"}
    assert comparison.chance.interval(comparison.entries[0]).by == "calibrated"
    # three equal deviations: the prior counts 9 degrees, too, and 2 go to its parameters; t of 16 is 2.120
    assert comparison.chance.interval(comparison.entries[0]).high == pytest.approx(92.120, abs=1e-3)
    for other in (Noise(), replace(noise, rows={"sa": 768})):  # without it, or of other test rows, nothing can tell
        assert set(alone(records, noise=other).p_values.values()) == {None}


def test_rows_alone_tell_no_two_methods_of_one_seed_apart():
    few, many = hits(512, 480, 20), hits(512, 480)
    comparison = alone([record_of("bert_sa_sft", {"accuracy": many}), record_of("bert_sa_lora", {"accuracy": few})])
    assert (list(comparison.p_values.values()), comparison.groups) == ([None], {"sft": "a", "lora": "a"})
    messages = "cannot tell lora and sft apart: nobody knows by how much a seed moves sft or lora; --seeds 0-4 trains more"
    assert messages in remarks(comparison)
    assert comparison.chance.interval(comparison.entries[0]).by == "rows"
    # 93.75 % of 512: the error is sqrt(0.9375 x 0.0625 / 511) = 1.071 %, t of 511 is 1.965
    assert comparison.chance.interval(comparison.entries[0]).low == pytest.approx(93.75 - 1.965 * 1.0708, abs=2e-3)


def test_several_seeds_with_rows_rest_on_both(tmp_path):
    gains = np.array([100.0] * 4 + [0.0] * 96)
    variance, df = row_error(gains)
    assert (variance, df) == (pytest.approx((4 * 96**2 + 96 * 4**2) / 99 / 100), 99)
    assert row_error(np.zeros(100)) == (0.25, 99)  # half of one row's point: no proof that none would change
    # variances 3 and 1 of 3 and 1 degrees: error 2, and 16 / (9 / 3 + 1 / 1) degrees
    assert combined([(3.0, 3.0), (1.0, 1.0)]) == (2.0, 4.0)
    records = [
        record_of(cell, {"accuracy": hits(512, 480, lost + seed)}, seed=seed)
        for cell, lost in (("bert_sa_sft", 0), ("bert_sa_lora", 3))
        for seed in (0, 1)
    ]
    comparison = alone(records)
    assert comparison.chance.interval(comparison.entries[0]).by == "2 seeds, rows"
    assert comparison.entries[0].rows.mean() == pytest.approx(100 * 479.5 / 512)
    kept, lost = record_of("bert_sa_sft", {"accuracy": hits(20, 10)}), measured("bert_sa_sft", 50.0, seed=1)
    assert entry_of([(kept, tmp_path / "run.json"), (lost, tmp_path / "run.json")]).rows is None


@pytest.mark.parametrize("noise", [Noise(), load_noise()], ids=["of nobody", "calibrated"])
def test_equal_methods_of_one_seed_each_are_told_apart_in_one_table_of_twenty_at_most(noise):
    """The five seeds of each cell of the baseline are methods that are equally good, since they are one and the same."""
    path, cells = ROOT / "reports" / "baselines" / "quick-cpu.json", defaultdict(list)
    for record in read_list(path):
        cells[record.cell].append(entry_of([(replace(record, method=f"seed {record.seeds.seed}"), path)]))
    assert all(entry.rows is not None for entries in cells.values() for entry in entries)
    triples = [three for entries in cells.values() for three in combinations(entries, 3)]
    tables = [Comparison(task="", backbone="", entries=three, chance=chance_of(three, noise)) for three in triples]
    assert len(tables) == 270
    assert sum(bool(table.apart) for table in tables) <= 0.05 * len(tables)


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0), (0.3, 0.5, 1.0, 1.0, 2.0, 3.0)], ids=["alike", "unlike"])
def test_about_one_table_of_twenty_equal_methods_tells_any_apart_at_most(deviations, seeds):
    rng, runs, alarms = np.random.default_rng(1), 500, 0
    records = [
        replace(measured("bert_sa_lora", 80.0), method=f"m{index}", cell=f"bert_sa_m{index}")
        for index in range(len(deviations))
    ]
    for _ in range(runs):
        entries = [
            Entry(records=[replace(record, scores={"accuracy": float(score)}) for score in rng.normal(80, deviation, seeds)])
            for record, deviation in zip(records, deviations, strict=True)
        ]
        chance = chance_of(entries, Noise())
        alarms += bool(Comparison(task="sa", backbone="bert", entries=entries, chance=chance).apart)
    assert alarms / runs <= 0.05 + 0.02  # two standard errors


# Letters and fronts


@pytest.mark.parametrize("seed", range(40))
def test_names_share_a_letter_unless_they_are_told_apart(seed):
    rng = random.Random(seed)
    names = [f"m{index}" for index in range(rng.randint(1, 9))]
    apart = {frozenset(pair) for pair in combinations(names, 2) if rng.random() < 0.5}
    shown = compact_letters(names, apart)
    assert shown[names[0]].startswith("a")
    for one, other in combinations(names, 2):
        assert bool(set(shown[one]) & set(shown[other])) == (frozenset((one, other)) not in apart)


@pytest.mark.parametrize(
    ("apart", "letters"), [(["xz"], ["a", "ab", "b"]), ([], ["a", "a", "a"]), (["xy", "xz", "yz"], ["a", "b", "c"])]
)
def test_letters_by_hand(apart, letters):
    assert list(compact_letters(["x", "y", "z"], set(map(frozenset, apart))).values()) == letters


def test_a_front_of_several_figures_has_who_is_best_in_any():
    figures = {"small": (1, 9, 5), "fast": (9, 1, 5), "between": (5, 5, 5), "beaten": (5, 6, 5), "equal": (5, 5, 5)}
    assert front(figures, figures.__getitem__) == ["small", "fast", "between", "equal"]


# What limits a comparison


def test_what_limits_a_comparison_is_said_below_it():
    failed = [{"name": "learned_something", "passed": False, "detail": "no better than the majority"}]
    records = [measured("bert_sa_sft", 99.0, audits=failed), *three_on_two_seeds()[2:]]
    comparison = alone(records)
    assert [entry.method for entry in comparison.entries] == ["lora", "qlora", "sft"]
    assert comparison.groups.keys() == {"lora", "qlora"}
    messages = "left out of groups and front: sft: audit learned_something: no better than the majority"
    assert messages in remarks(comparison)
    assert "audits failed" in as_text([comparison])
    changes = {
        "training": MEASURED["training"] | {"updates": 5, "precision": "bf16"},
        "data": MANY | {"fingerprint": "f" * 16},
    }
    comparison = alone([measured("bert_sa_sft", 90.0), measured("bert_sa_qlora", 80.0, **changes)])
    messages = remarks(comparison)
    assert "not like for like, budget: 2 updates of 16 rows (sft); 5 updates of 12 rows (qlora)" in messages
    assert "not like for like, precision: fp32 (sft); bf16 (qlora)" in messages
    assert "not like for like, data: 0123456789abcdef (sft); ffffffffffffffff (qlora)" in messages
    assert "cannot tell qlora and sft apart: they scored other test rows" in messages
    records = [*three_on_two_seeds(), *(measured(f"t5_sa_{method}", 80.0 + n) for n, method in enumerate(("sft", "lora")))]
    bert, t5 = comparisons(records)
    assert (remarks(t5)[-1], bert.absent) == ("not in this run: qlora", [])
    assert ("sa", "qlora", "0 of 2", "1 of 2", "0 of 2") in summary([bert, t5])
    memory = {"phases": {}, "ledger": MEASURED["memory"]["ledger"] | {"checkpoint_bytes": None, "weights_bytes": None}}
    comparison = alone([measured("bert_sa_sft", 90.0), measured("bert_sa_lora", 80.0, memory=memory)])
    assert comparison.costs == [TRAINED, SECONDS]
    assert comparison.entries[1].costs[TRAINED] == 4 * MEASURED["parameters"]["trainable_params"]
    assert {f"not measured of every method, so the front leaves it out: {name}" for name in (PEAK, TENSORS)} <= {
        *remarks(comparison)
    }


@pytest.mark.parametrize(("cells_before", "memory"), [(0, PEAK), (3, TENSORS), (None, TENSORS)])
def test_a_peak_counts_where_its_process_ran_no_cell_before_and_tensors_where_it_did(cells_before, memory):
    records = [replace(r, memory=replace(r.memory, cells_before=cells_before)) for r in three_on_two_seeds()]
    comparison = alone(records)
    assert comparison.costs == [TRAINED, memory, SECONDS]
    assert comparison.peaks_are_shared == (memory == TENSORS)
    shown = as_text([comparison])
    assert (SHARED in shown, " 0.90*" in shown) == (memory == TENSORS, memory == PEAK)


def test_a_peak_of_a_gpu_is_the_cells_own():
    phases = {"train": PHASE | {"reserved_peak_gib": 3.5}}
    record = complete(memory={"phases": phases, "ledger": MEASURED["memory"]["ledger"]})
    assert (record.peak_gib, record.own_peak_gib) == (3.5, 3.5)
    assert complete().own_peak_gib is None  # a CPU, and nobody counted the cells before


# The command


def test_the_command_prints_a_table_for_each_task_and_backbone(tmp_path, capsys):
    assert command.main([str(saved(tmp_path / "run.json", *three_on_two_seeds()))]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "sa on bert: accuracy, 2 seeds"
    words = [" ".join(line.split()) for line in out]
    assert words[1] == "method points 95 % interval by group MiB tensors GiB seconds over seeds front"
    assert words[3] == "lora 83.0 70.3 to 95.7 2 seeds ab 0.00 0.0 1.10 12.5 12.0-13.0 no (sft)"
    assert words[4] == "qlora 76.0 63.3 to 88.7 2 seeds b 0.00* 0.0 0.90* 8.5* 8.0-9.0 yes"
    assert words[-1].startswith("the quick profile trains micro backbones, which say nothing of full-size models;")


def test_two_runs_count_as_one(tmp_path, capsys):
    first, second = three_on_two_seeds()[::2], three_on_two_seeds()[1::2]
    together = as_text(comparisons(three_on_two_seeds()))
    assert command.main([str(saved(tmp_path / "a.json", *first)), str(saved(tmp_path / "b.json", *second))]) == 0
    assert capsys.readouterr().out.strip() == together
    shown = as_markdown(comparisons(three_on_two_seeds()))
    assert "**sa on bert: accuracy, 2 seeds**" in shown
    assert f"| qlora | 76.0 | 63.3 to 88.7 | 2 seeds | b | {markdown('0.00*')} | 0.0  | {markdown('0.90*')} |" in shown


LORA, SFT = (measured(cell, 80.0) for cell in ("bert_sa_lora", "bert_sa_sft"))
LIMITED = measured("bert_sa_sft", 80.0, 1, limits=vars(LORA.limits) | {"train_rows": 7})


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([LORA, measured("t5_sa_lora", 80.0)], "one method only, lora; a comparison takes two or more"),
        ([LORA, replace(SFT, profile="full")], "cells of full and quick; compare one profile at a time"),
        ([complete(**FOOTPRINT)], "no cell finished with a score, so there is nothing to compare"),
        ([LORA, LORA], "run.json holds twice bert_sa_lora of seed 0; a comparison takes each seed once"),
        ([LORA, SFT, LIMITED], "the runs trained or scored bert_sa_sft differently, so they are not seeds of one experiment"),
    ],
    ids=["one method", "two profiles", "footprints", "one seed twice", "two recipes"],
)
def test_runs_that_cannot_be_compared_are_one_sentence(records, sentence):
    with pytest.raises(InputError) as error:
        comparisons(records)
    assert str(error.value).endswith(sentence)


def test_what_was_published_stands_beside_a_run_and_alone_is_refused(tmp_path, capsys):
    study = str(ROOT / "reports" / "study.json")
    runs = saved(tmp_path / "run.json", measured("bert_sa_lora", 90.0), measured("bert_sa_sft", 92.0))
    assert command.main([str(runs), study]) == 0
    _, table = capsys.readouterr().out.split("beside what was published\n")
    words = [" ".join(line.split()) for line in table.splitlines()]
    assert words[1:3] == ["bert_sa_lora accuracy 90.0 87.0 +3.0", "bert_sa_lora precision, negative - 86.0 -"]
    assert "t5_sa_lora" not in table
    assert words[-1].startswith("the quick profile trains other backbones")
    assert "only published results, which were not run here" in refusal(capsys, command.main, study)
