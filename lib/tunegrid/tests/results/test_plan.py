"""A grid on paper, with figures worked out by hand."""

import json

import pytest

from tunegrid.commands import plan as command
from tunegrid.results.estimates import Estimate
from tunegrid.results.plan import Plan, as_json, lines
from tunegrid.tests.records import FOOTPRINT, MEASURED, PHASE, footprint

HOUR = 3600.0
GPU = {"device": "an H100", "on_gpu": True}


def plan(gpus, *, seeds=1, price=None, **hours):
    known = {cell: Estimate(seconds=HOUR * count, gib=10.0, source="run.json", **GPU) for cell, count in hours.items()}
    return Plan(estimates=known, gpus=gpus, seeds=seeds, price=price)


def test_the_last_run_ends_where_the_longest_went_first():
    # 5 | 4 + 2 | 3 + 3: six hours; 17 of 18 GPU hours are used
    five = plan(3, a=5, b=4, c=3, d=3, e=2)
    assert five.wall_seconds == 6 * HOUR
    assert five.idle_share == pytest.approx(1 / 18)
    assert five.busy_seconds == 17 * HOUR


def test_each_seed_is_a_run_of_its_own():
    # 5 | 5, then 1 and 1 beside: 6 | 6
    assert plan(2, seeds=2, a=5, b=1).wall_seconds == 6 * HOUR
    assert plan(2, seeds=2, a=5, b=1).idle_share == 0


def test_no_number_of_gpus_makes_the_longest_run_shorter():
    wide = plan(64, a=5, b=4, c=1)
    assert wide.wall_seconds == 5 * HOUR
    assert wide.gpus_that_help == 2  # 5 | 4 + 1
    assert wide.idle_share == pytest.approx(1 - 10 / 320)


def test_the_price_is_of_the_runs_and_of_all_gpus_until_the_end():
    bought = as_json(plan(2, price=2.5, a=5, b=3))
    assert bought["cost_of_runs"] == 20.0  # 8 hours
    assert bought["cost_of_all_gpus_until_the_end"] == 25.0  # two GPUs for 5 hours


def test_each_cell_has_the_price_of_one_run_where_its_time_is_a_gpus():
    known = {"a": Estimate(seconds=5 * HOUR, source="h100.json", **GPU), "b": Estimate(seconds=HOUR, source="cpu.json")}
    bought = Plan(estimates=known, gpus=1, seeds=3, price=2.5)
    assert [cell["cost"] for cell in as_json(bought)["cells"]] == [12.5, None]  # 5 hours at 2.50, for one of three seeds
    titles, first, second, *_ = (line.split() for line in lines(bought))
    assert titles[:4] == ["cell", "one", "run", "price"]
    assert (first[:4], second[:4]) == (["a", "5.0", "h", "12.50"], ["b", "1.0", "h", "-"])
    assert "price" not in lines(Plan(estimates=known, gpus=1))[0]


def test_larger_backbones_are_planned_by_themselves(capsys):
    assert command.main(["--gpus", "1", "--larger", "--format", "json"]) == 0
    planned = [cell["cell"] for cell in json.loads(capsys.readouterr().out)["cells"]]
    assert len(planned) == 36
    assert {cell.split("_")[0] for cell in planned} == {"bertlarge", "gpt2medium", "t5base", "t5large"}


def test_a_cell_never_measured_is_named_and_in_no_sum():
    half = Plan(estimates={"a": Estimate(seconds=HOUR, gib=1.0, source="run.json", **GPU), "b": Estimate()}, gpus=2)
    figures = as_json(half)
    assert (figures["wall_seconds"], figures["cells_of_unknown_time"]) == (HOUR, ["b"])
    assert figures["cells"][1] == {
        "cell": "b",
        "seconds": None,
        "gib": None,
        "at_least_gib": None,
        "cost": None,
        "reckoned": False,
        "device": None,
        "source": "never measured",
    }
    assert lines(half)[-1] == "not in it, since no time is known: b"


def test_a_grid_of_which_nothing_is_known_has_no_times_and_no_price():
    nothing = as_json(Plan(estimates={"a": Estimate()}, gpus=2, price=1.0))
    names = ("wall_seconds", "busy_seconds", "idle_share", "gpus_that_help", "cost_of_all_gpus_until_the_end")
    assert [nothing[name] for name in names] == [None] * 5


@pytest.mark.parametrize(
    ("changes", "gib"),
    [({}, 20.0), ({"on_gpu": False}, None), ({"same_update": False}, None)],
    ids=["like the recipe", "on a CPU", "of fewer rows"],
)
def test_memory_is_known_only_from_a_gpu_at_the_recipes_updates(changes, gib):
    measured = {"seconds": HOUR, "gib": 20.0, "tensors_gib": 3.0, "reckoned": True, "source": "footprint.json", **GPU}
    one = Plan(estimates={"a": Estimate(**measured | changes)}, gpus=1, price=1.0)
    assert one.memory("a") == (gib, 3.0)
    assert as_json(one)["cost_of_runs"] == (1.0 if changes.get("on_gpu", True) else None)


def test_the_text_says_what_is_measured_and_what_is_reckoned():
    cell = Estimate(
        seconds=2 * HOUR, gib=9.0, tensors_gib=1.5, device="a CPU", reckoned=True, same_update=False, source="f.json"
    )
    assert lines(Plan(estimates={"bert_sa_lora": cell}, gpus=4, seeds=2, price=2.5)) == [
        "cell              one run    GiB  at least  time is   from",
        "bert_sa_lora        2.0 h      -      1.50  reckoned  f.json",
        "",
        "1 cells x 2 seeds on 4 devices, longest first: 2.0 h; the longest run alone, bert_sa_lora, takes 2.0 h",
        "idle 50 %; 2 of them would end as soon",
        "hours of runs 4.0, of all 4 until the last run ends 8.0",
        "price not known: these are times of a CPU",
        "times are of a CPU",
        "a GPU's times come from its own footprint: pytest -m footprint --benchmark-json=FILE",
        "1 are reckoned: training rows by a footprint's rate, without loading, validation and scoring",
        "1 of these have other rows per update than their footprint: neither time nor memory is scaled",
        "memory of 1 cells is not known; what their tensors took in one update of the footprint is the least",
    ]


# The command


def test_a_gpus_footprint_plans_the_full_grid(tmp_path, capsys):
    # 50,000 rows, three epochs, at 100 rows per second: 1,500 s
    memory = FOOTPRINT.get("memory", MEASURED["memory"]) | {"phases": {"train": PHASE | {"reserved_peak_gib": 12.5}}}
    path = footprint(tmp_path / "footprint.json", "bert_sum_lora", 100.0, per_device_train_batch_size=8)
    saved = json.loads(path.read_text())
    record = saved["benchmarks"][0]["extra_info"]
    record |= {"memory": memory, "device": record["device"] | {"type": "cuda", "name": "NVIDIA H100", "threads": None}}
    path.write_text(json.dumps(saved))
    assert command.main([str(path), "--gpus", "8", "--seeds", "5", "--price-per-hour", "2.50", "--format", "json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["wall_seconds"], figures["gpus_that_help"]) == (1500, 5)
    assert figures["cost_of_runs"] == pytest.approx(5 * 1500 / 3600 * 2.5)
    assert len(figures["cells_of_unknown_time"]) == 26
    known = next(cell for cell in figures["cells"] if cell["cell"] == "bert_sum_lora")
    assert (known["gib"], known["reckoned"], known["device"]) == (12.5, True, "NVIDIA H100")


def test_what_is_committed_plans_without_a_gpus_memory_or_price(capsys):
    assert command.main(["--gpus", "64", "--price-per-hour", "2.50", "--format", "json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {cell["gib"] for cell in figures["cells"]} == {None}
    assert all(cell["at_least_gib"] > 0 for cell in figures["cells"])
    assert (figures["cells_of_unknown_time"], figures["cost_of_runs"]) == ([], None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpus", "0"], "'0' is not a whole number of at least 1"),
        (["--gpus", "2", "--price-per-hour", "-1"], "'-1' is not a price: expected a number, as in 2.50"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert sentence in capsys.readouterr().err
