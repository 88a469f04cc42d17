"""Methods next to each other: fronts, intervals and pairs, on records whose answers are known by hand."""

import json
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
    TENSORS,
    TRAINED,
    Comparison,
    Entry,
    compared,
    dominates,
    entry_of,
    noise_of,
    p_of,
    published_scores,
    sections,
)
from tunegrid.results.files import read_list
from tunegrid.results.noise import SEEDS, Deviation, Noise, load_noise
from tunegrid.results.report import FORMATS, text
from tunegrid.tests.outputs import is_snapshot, refusal
from tunegrid.tests.records import FOOTPRINT, MEASURED, PHASE, complete, saved, seeds_as

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


def said(found):
    return "\n".join(sentence for part in sections(found, {}) for sentence in part.sentences)


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
    assert comparison.apart == {frozenset(("sft", "qlora"))}
    assert comparison.costs == [TRAINED, PEAK, SECONDS]
    for costs in ([TRAINED], [PEAK], [SECONDS], comparison.costs):
        assert comparison.front(*costs) == ["sft", "qlora"]
    costs = {TRAINED: 300 / 2**20, TENSORS: 4300 / 2**20, PEAK: 1.0, SECONDS: 10.5}
    assert comparison.entries["sft"].costs == pytest.approx(costs)
    # t of one degree of freedom is 12.706, the error sqrt(2) / sqrt(2)
    assert comparison.interval("qlora") == pytest.approx((76 - 12.706, 76 + 12.706), abs=1e-3)
    # deviations of sqrt 2; for two degrees quantiles of 0.05 / 6 and 0.2 are 7.649 and 1.061: 4 x (8.710 / 7) ** 2 is 6.19
    assert comparison.seeds_needed("sft", "lora") == 7
    assert alone(three_on_two_seeds()[:5]).p_values.keys() == comparison.p_values.keys()  # qlora has one seed


# Chance


def test_calibrated_noise_tells_what_one_seed_of_each_cannot():
    known = {(f"bert_sa_{method}", "accuracy"): Deviation(sd=1.0, df=9.0) for method in ("sft", "lora", "qlora")}
    noise = Noise(profile="quick", rows={"sa": 10_000}, measured={"seeds": known})
    records = [measured("bert_sa_sft", 90.0), measured("bert_sa_lora", 80.0)]
    comparison = alone(records, noise=noise)
    assert comparison.apart == {frozenset(("sft", "lora"))}
    # three equal deviations: the prior counts 9 degrees, too, and 2 go to its parameters; t of 16 is 2.120
    assert comparison.interval("sft")[1] == pytest.approx(92.262, abs=1e-3)
    for other in (Noise(), replace(noise, rows={"sa": 768})):  # without it, or of other test rows, nothing can tell
        unknown = alone(records, noise=other)
        assert (unknown.p_values, unknown.interval("sft")) == ({}, None)
        why = "not tested, since by how much a seed moves sft or lora is unknown (`--seeds=0-4` tells): sa bert sft and lora."
        assert why in said([unknown])
        heading = "0 of 1 pairs of methods are told apart, 1 could not be tested; the others:"
        assert sections([unknown], {})[-2].heading == heading
    assert "No pair is left." in said([comparison])
    assert p_of(0.0, []) == 1.0
    # variances 3 and 1 of 3 and 1 degrees: error 2, and 16 / (9 / 3 + 1 / 1) degrees, of which t is 2.776
    assert p_of(2 * 2.776445, [(3.0, 3.0), (1.0, 1.0)]) == pytest.approx(0.05, abs=1e-6)


BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"


def test_calibrated_seeds_count_if_recipe_and_scores_are_theirs():
    records, noise = [record for record in read_list(BASELINE) if record.cell == "bert_sa_lora"], load_noise()
    [known] = noise.scores[SEEDS]["bert_sa_lora", "accuracy"]
    assert len(records) == 5
    assert sorted(entry_of(records, noise).scores) == pytest.approx(sorted(known), abs=0.006)
    other = replace(records[0], recipe=replace(records[0].recipe, learning_rate=1.0))
    far = replace(records[0], scores={"accuracy": 80.0})
    few = replace(records[0], data=replace(records[0].data, rows=records[0].data.rows | {"test": 7}))
    limited = replace(records[0], limits=replace(records[0].limits, train_rows=7))
    moved = replace(records[0], seeds=replace(records[0].seeds, perturbation=0))
    for unlike in (other, far, few, limited, moved, replace(records[0], profile="full")):
        assert not entry_of([unlike], noise).more_scores


def test_the_committed_seeds_tell_ten_of_27_pairs_apart_in_few_words():
    report = sections(compared({BASELINE: read_list(BASELINE)}, load_noise()), published_scores())
    assert report[0].heading == "Not like for like in budget"
    assert report[-2].heading == "10 of 27 pairs of methods are told apart; the others:"
    assert set(report[1].frame.seeds) == {20, 30}
    shown = text(report)
    assert len(shown.split()) < 900
    assert is_snapshot(f"{shown}\n", "compare.txt")
    sentences = [sentence for part in report for sentence in part.sentences]
    assert len(set(sentences)) == len(sentences)
    assert json.loads(FORMATS["json"](report))[1]["rows"][0]["points"] == pytest.approx(91.2, abs=0.05)


def table(entries, noise):
    return Comparison(task="sa", backbone="bert", entries={entry.first.method: entry for entry in entries}, noise=noise)


@pytest.mark.parametrize("noise", [Noise(), load_noise()], ids=["of nobody", "calibrated"])
def test_equal_methods_of_one_seed_each_are_told_apart_in_one_table_of_twenty_at_most(noise):
    """The five seeds of each cell of the baseline are methods that are equally good, since they are one and the same."""
    cells = defaultdict(list)
    for record in read_list(BASELINE):
        cells[record.cell].append(Entry(records=[replace(record, method=f"seed {record.seeds.seed}")]))
    triples = [three for entries in cells.values() for three in combinations(entries, 3)]
    tables = [table(three, noise_of(three, noise)) for three in triples]
    assert len(tables) == 270
    assert sum(bool(one.apart) for one in tables) <= 0.05 * len(tables)


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
        alarms += bool(table(entries, noise_of(entries, Noise())).apart)
    assert alarms / runs <= 0.05 + 0.02  # two standard errors


def test_a_front_of_several_figures_has_who_is_best_in_any():
    figures = {"small": (1, 9, 5), "fast": (9, 1, 5), "between": (5, 5, 5), "beaten": (5, 6, 5), "equal": (5, 5, 5)}
    front = [name for name, own in figures.items() if not any(dominates(other, own) for other in figures.values())]
    assert front == ["small", "fast", "between", "equal"]


# What limits a comparison


def test_what_limits_a_comparison_is_said_below_it():
    failed = [{"name": "learned_something", "passed": False, "detail": "no better than the majority"}]
    records = [measured("bert_sa_sft", 99.0, audits=failed), *three_on_two_seeds()[2:]]
    comparison = alone(records)
    assert (list(comparison.entries), list(comparison.sound)) == (["lora", "qlora", "sft"], ["lora", "qlora"])
    message = "neither best nor on the front, since audit learned_something: no better than the majority: bert_sa_sft."
    assert message in said([comparison])
    changes = {
        "training": MEASURED["training"] | {"updates": 5, "precision": "bf16"},
        "data": MANY | {"fingerprint": "f" * 16},
    }
    comparison = alone([measured("bert_sa_sft", 90.0), measured("bert_sa_qlora", 80.0, **changes)])
    unlike = dict(zip(*(sections([comparison], {})[0].frame[name] for name in ("in", "methods")), strict=True))
    assert unlike == {
        "updates": "2x16 (sft), 5x12 (qlora)",
        "precision": "fp32 (sft), bf16 (qlora)",
        "data": "0123456789abcdef (sft), ffffffffffffffff (qlora)",
    }
    assert "not tested, since they scored other test rows: sa bert sft and qlora." in said([comparison])
    records = [*three_on_two_seeds(), *(measured(f"t5_sa_{method}", 80.0 + n) for n, method in enumerate(("sft", "lora")))]
    [often] = [part.frame for part in sections(comparisons(records), {}) if part.heading.startswith("How often")]
    assert often.to_numpy().tolist()[-1] == ["sa", "qlora", 0, 1, 1]
    memory = {"phases": {}, "ledger": MEASURED["memory"]["ledger"] | {"checkpoint_bytes": None, "weights_bytes": None}}
    comparison = alone([measured("bert_sa_sft", 90.0), measured("bert_sa_lora", 80.0, memory=memory)])
    assert comparison.costs == [TRAINED, SECONDS]
    assert comparison.entries["lora"].costs[TRAINED] == 4 * MEASURED["parameters"]["trainable_params"] / 2**20
    assert "no peak was measured: bert_sa_lora." in said([comparison])


def test_seconds_of_a_machine_that_others_used_are_no_cost():
    records = [replace(record, device=replace(record.device, contended=True)) for record in three_on_two_seeds()]
    [comparison] = found = comparisons(records)
    assert [entry.costs[SECONDS] for entry in comparison.entries.values()] == [None] * 3
    assert "no seconds, since others used the machine: all." in said(found)
    assert SECONDS not in text(sections(found, {})).split("What to know")[0]


@pytest.mark.parametrize(("cells_before", "memory"), [(0, PEAK), (3, TENSORS), (None, TENSORS)])
def test_a_peak_counts_where_its_process_ran_no_cell_before_and_tensors_where_it_did(cells_before, memory):
    records = [replace(r, memory=replace(r.memory, cells_before=cells_before)) for r in three_on_two_seeds()]
    comparison = alone(records)
    assert comparison.costs == [TRAINED, memory, SECONDS]
    own = {entry.costs[PEAK] is not None for entry in comparison.entries.values()}
    assert own == {memory == PEAK}
    assert ("processes may have run other cells" in said([comparison])) == (memory == TENSORS)


def test_a_peak_of_a_gpu_is_the_cells_own():
    phases = {"train": PHASE | {"reserved_peak_gib": 3.5}}
    record = complete(memory={"phases": phases, "ledger": MEASURED["memory"]["ledger"]})
    assert (record.peak_gib, record.own_peak_gib) == (3.5, 3.5)
    assert complete().own_peak_gib is None  # a CPU, and nobody counted the cells before


# The command


@pytest.mark.parametrize("form", FORMATS)
def test_two_runs_count_as_one_in_every_format(tmp_path, capsys, form):
    first, second = three_on_two_seeds()[::2], three_on_two_seeds()[1::2]
    together = FORMATS[form](sections(comparisons(three_on_two_seeds()), published_scores()))
    files = [str(saved(tmp_path / "a.json", *first)), str(saved(tmp_path / "b.json", *second))]
    assert command.main([*files, "--format", form]) == 0
    assert capsys.readouterr().out.strip() == together
    if form == "text":
        [line] = [line.split() for line in together.splitlines() if line.startswith("bert      qlora")]
        assert line == ["bert", "qlora", "76.0", "63.3", "88.7", "2", "95.0", "0.00", "0.0", "0.90", "8.5", "no", "yes"]


LORA, SFT = (measured(cell, 80.0) for cell in ("bert_sa_lora", "bert_sa_sft"))
LIMITED = measured("bert_sa_sft", 80.0, 1, limits=vars(LORA.limits) | {"train_rows": 7})


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([LORA, measured("t5_sa_lora", 80.0)], "one method only, lora; a comparison takes two or more"),
        ([LORA, replace(SFT, profile="full")], "cells of full and quick; compare one profile at a time"),
        ([complete(**FOOTPRINT)], "no cell finished with a score, so there is nothing to compare"),
        ([LORA, LORA], "a.json and run.json both hold bert_sa_lora of seed 0; a comparison takes each seed once"),
        ([LORA, SFT, LIMITED], "the runs trained or scored bert_sa_sft differently, so they are not seeds of one experiment"),
    ],
    ids=["one method", "two profiles", "footprints", "one seed twice", "two recipes"],
)
def test_runs_that_cannot_be_compared_are_one_sentence(records, sentence):
    twice = {Path("a.json"): records[:1], Path("run.json"): records[1:]} if records == [LORA, LORA] else None
    with pytest.raises(InputError) as error:
        compared(twice, Noise()) if twice else comparisons(records)
    assert str(error.value).endswith(sentence)


def test_what_was_published_stands_beside_a_run_and_alone_is_refused(tmp_path, capsys):
    study = str(ROOT / "reports" / "study.json")
    runs = saved(tmp_path / "run.json", measured("bert_sa_lora", 90.0), measured("bert_sa_sft", 92.0))
    assert command.main([str(runs), study]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    lora = next(line for line in words if line[:2] == ["bert", "lora"])
    assert (lora[2], lora[4]) == ("90.0", "87.0")
    assert "study: published; of other backbones on other rows." in {" ".join(line) for line in words}
    assert "only published results, which were not run here" in refusal(capsys, command.main, study)
