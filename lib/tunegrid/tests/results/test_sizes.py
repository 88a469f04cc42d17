"""The gap between LoRA and full fine-tuning against size, on records whose answers are known by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tunegrid.commands import compare as command
from tunegrid.record import to_json
from tunegrid.record.parts import Parameters
from tunegrid.results import examples, sizes
from tunegrid.results.compare import compared
from tunegrid.results.noise import Noise
from tunegrid.tests.records import MEASURED, complete, hits, record_of

MANY = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 10_000}}  # so that rows resolve small deviations
BERT = MEASURED["model"] | {"architecture": "BertForSequenceClassification"}
PARAMETERS = {"bert": 110_000_000, "bertlarge": 330_000_000}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Examples of these runs stay out of the machine's own store."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")


def sized(backbone, record):
    """The same record of another size."""
    counts = Parameters(trainable_params=PARAMETERS[backbone], total_params=PARAMETERS[backbone], trainable_percent=100.0)
    return replace(record, cell=f"{backbone}_sa_{record.method}", backbone=backbone, parameters=counts)


def seeds_of(backbone, method, *scores):
    parts = {"bounds": {}, "examples": None, "data": MANY, "model": BERT}
    for seed, score in enumerate(scores):
        seeds = {"seed": seed, "split_seed": 42, "perturbation": None}
        yield sized(backbone, complete(f"bert_sa_{method}", scores={"accuracy": score}, seeds=seeds, **parts))


def two_sizes():
    """LoRA's means are 6 below SFT's on the small backbone and 2 on the large one; each deviation is the square root of 2."""
    return [
        *seeds_of("bert", "sft", 89.0, 91.0),
        *seeds_of("bert", "lora", 83.0, 85.0),
        *seeds_of("bertlarge", "sft", 93.0, 95.0),
        *seeds_of("bertlarge", "lora", 91.0, 93.0),
    ]


def comparisons(records):
    return compared({Path("run.json"): list(records)}, Noise())


def test_a_gap_and_its_interval_by_size_are_students():
    # A mean of two has variance 1; a gap of two means 2, with two degrees of freedom, for which t is 4.303: 6.085.
    [(family, (small, large))] = sizes.by_family(comparisons(two_sizes())).items()
    assert family == ("sa", "lora", "BertForSequenceClassification")
    assert [(gap.backbone, gap.parameters, gap.points) for gap in (small, large)] == [
        ("bert", 110_000_000, -6.0),
        ("bertlarge", 330_000_000, -2.0),
    ]
    assert small.gap.interval.low == pytest.approx(-6 - 6.085, abs=1e-3)
    assert small.gap.interval.high == pytest.approx(-6 + 6.085, abs=1e-3)


def test_the_change_from_the_smallest_to_the_largest_adds_their_variances():
    # Each gap has variance 2 and two degrees of freedom: together 4 and four, for which t is 2.776, times the root of 4.
    [(small, large)] = sizes.by_family(comparisons(two_sizes())).values()
    moved = sizes.change(small, large)
    assert (moved.points, moved.df) == (4.0, pytest.approx(4.0))
    assert moved.interval.high == pytest.approx(4 + 5.553, abs=1e-3)


def test_the_table_has_a_line_for_each_size_and_one_for_the_change():
    _, title, head, *lines, _ = sizes.as_text(comparisons(two_sizes())).splitlines()
    assert title == "points of each method minus those of sft, by the backbone's size"
    assert head.split()[:3] == ["task", "method", "backbone"]
    assert [line.split() for line in lines] == [
        ["sa", "lora", "bert", "110", "M", "-6.0", "-12.1", "to", "+0.1", "2", "seeds"],
        ["sa", "lora", "bertlarge", "330", "M", "-2.0", "-8.1", "to", "+4.1", "2", "seeds"],
        ["sa", "lora", "bert", "to", "bertlarge", "x", "3.0", "+4.0", "-1.6", "to", "+9.6", "2", "seeds"],
    ]
    assert "| sa | lora | bertlarge | 330 M | -2.0 | -8.1 to +4.1 | 2 seeds |" in sizes.as_markdown(comparisons(two_sizes()))


def test_one_size_has_no_table():
    alone = [record for record in two_sizes() if record.backbone == "bert"]
    assert (sizes.as_text(comparisons(alone)), sizes.as_markdown(comparisons(alone))) == ("", "")


def test_sizes_of_two_families_are_not_set_against_each_other():
    other = [
        replace(r, model=replace(r.model, architecture="T5EncoderClassifier")) if r.backbone == "bertlarge" else r
        for r in two_sizes()
    ]
    assert sizes.as_text(comparisons(other)) == ""


def test_a_size_without_full_fine_tuning_has_no_gap():
    left = [record for record in two_sizes() if record.cell != "bertlarge_sa_sft"]
    assert sizes.as_text(comparisons(left)) == ""


def test_a_method_that_an_audit_objects_to_has_no_gap():
    failed = [{"name": "base_frozen", "passed": False, "detail": "1 tensor moved"}]
    broken = complete("bert_sa_lora", audits=failed).audits
    records = [replace(r, audits=broken) if r.cell == "bertlarge_sa_lora" else r for r in two_sizes()]
    assert sizes.as_text(comparisons(records)) == ""


def one_seed(backbone, **right):
    """One seed of 1,000 test rows, of which each method has so many right, the first ones."""
    for method, count in right.items():
        record = record_of(f"bert_sa_{method}", {"accuracy": hits(1000, count)}, model=BERT)
        yield sized(backbone, record)


def test_one_seed_has_an_interval_by_rows_alone():
    records = comparisons([*one_seed("bert", sft=900, lora=850), *one_seed("bertlarge", sft=950, lora=940)])
    [(small, large)] = sizes.by_family(records).values()
    # 50 of 1,000 rows lose 100 points: variance (0.05 - 0.05 ** 2) x 10,000 x 1,000 / 999 / 1,000, that is 0.4755
    assert (small.points, small.gap.by) == (-5.0, "rows")
    assert small.gap.error**2 == pytest.approx(0.4755, abs=1e-4)
    assert small.gap.interval.low == pytest.approx(-5 - 1.962 * 0.4755**0.5, abs=1e-3)
    assert sizes.change(small, large).by == "rows"


def test_neither_seeds_nor_rows_leave_a_gap_without_an_interval():
    [(small, large)] = sizes.by_family(comparisons(r for r in two_sizes() if r.seeds.seed == 0)).values()
    assert (small.points, small.gap, sizes.change(small, large)) == (-6.0, None, None)
    assert sizes.as_text(comparisons(r for r in two_sizes() if r.seeds.seed == 0)).splitlines()[3].split()[-2:] == ["-", "-"]


def test_the_command_shows_it_below_the_methods_of_several_runs(tmp_path, capsys):
    paths = []
    for backbone in PARAMETERS:
        rows = [{"name": r.cell, "extra_info": to_json(r)} for r in two_sizes() if r.backbone == backbone]
        paths.append(tmp_path / f"{backbone}.json")
        paths[-1].write_text(json.dumps({"benchmarks": rows}))
    assert command.main([str(path) for path in paths]) == 0
    assert "bert to bertlarge" in capsys.readouterr().out
    assert command.main([str(paths[0])]) == 0
    assert "minus sft" not in capsys.readouterr().out
