"""The module that changed is named by figures of each module: two tiny models, and plants in one of
them, all made by hand.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest

from tunegrid.errors import InputError
from tunegrid.gate.modules import (
    COLUMN_PREFIXES,
    COLUMNS,
    FIGURE_PARTS,
    FirstModules,
    Moved,
    first_modules,
    parse_modules,
)
from tunegrid.gate.numerics import compare_pair
from tunegrid.gate.thresholds import load_tolerances
from tunegrid.runs import examples
from tunegrid.tests.records import altered, complete

BOUND = 1e-4
EQUAL = (10.0, 1.0, 2.0, 3.0)  # a norm and three projections
SHUFFLED = (10.0, 2.0, 3.0, 1.0)
NONE = (None,) * 4


class Call(NamedTuple):
    """A call of a module; `source` and `maker` are the indexes of calls."""

    name: str
    depth: int
    source: int  # of what goes in; -1: none
    maker: int  # of what comes out, and of the gradient there


MODEL = (  # in the order in which calls end
    Call("embed", 1, -1, 0),
    Call("block.attention.query", 3, 0, 1),
    Call("block.attention.key", 3, 0, 2),
    Call("block.attention", 2, 0, 3),
    Call("block.norm", 2, -1, 4),
    Call("block.mlp", 2, 4, 5),
    Call("block", 1, 0, 5),
    Call("", 0, -1, 7),
)
NAMES = [call.name for call in MODEL]


def model(moved=None, calls=MODEL, phase="forward"):
    """The columns of a model: each figure is `EQUAL`, or what `moved` says by (name, figure)."""
    rows = []
    for call in calls:
        row = {
            "phase": phase,
            "module": call.name,
            "kind": (call.name or "Model").rpartition(".")[2].title(),
            "library": "toy",
            "call": 1.0,
            "depth": float(call.depth),
            "source": float(call.source),
            "maker": float(call.maker),
        }
        for figure in COLUMN_PREFIXES.values():
            values = (moved or {}).get((call.name, figure), EQUAL)
            for part, value in zip(FIGURE_PARTS, values, strict=True):
                row[f"{figure}_{part}"] = value
        rows.append(row)
    return {column: [row[column] for row in rows] for column in COLUMNS}


def find_first(old, new, **options):
    """The module that changed first between the columns of two models."""
    tolerance = {"module_outputs": BOUND, "module_gradients": BOUND}
    return first_modules(parse_modules(old), parse_modules(new), "forward", tolerance, **options)


def behind(names, far, figures=("given",)):
    """Figures that lie so far from `EQUAL`, as a share of the norm."""
    return dict.fromkeys(product(names, figures), (10.0, 1.0 + 10 * far, 2.0, 3.0))


IN_KEY = behind(["block.attention.key", "block.attention", "block", ""], 0.02) | behind(
    ["block.norm", "block.mlp"], 0.02, ("taken", "given")
)
BETWEEN = {name: figure for name, figure in IN_KEY.items() if name[0] != "block.attention.key"}
SIBLINGS = IN_KEY | behind(["block.attention.query"], 0.03)
SLOWLY = (
    behind(["block.attention.key"], 2e-5)
    | behind(["block.norm"], 6e-5, ("taken",))
    | behind(["block.norm"], 1.2e-4)
)
EQUAL_INPUT = "of its norm; its input is equal"
KEY = f"the output of block.attention.key (Key, toy) changes first, by 2 % {EQUAL_INPUT}"


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        (IN_KEY, KEY),  # and none of those behind it
        (
            BETWEEN,
            f"the output of block.attention (Attention, toy) changes first, by 2 % {EQUAL_INPUT}",
        ),
        (  # the norm gets another input already: the module around it is named
            behind(["block.norm", "block.mlp"], 0.5, ("taken", "given"))
            | behind(["block", ""], 0.5),
            f"the output of block (Block, toy) changes first, by 50 % {EQUAL_INPUT}",
        ),
        (
            SIBLINGS,
            KEY.replace("key", "query").replace("Key", "Query").replace("2", "3")
            + "; 1 more module likewise",
        ),
        # Within the bound
        (behind(["block.attention.key", "block.attention", "block", ""], 0.9e-4), ""),
        ({}, ""),
        # Each module amplifies rounding twice: what went into the one that crosses the bound moved
        # by half of it
        (SLOWLY, ""),
        (
            dict.fromkeys(product(NAMES, ("taken", "given")), SHUFFLED),
            "the input of the model (Model, toy) al",
        ),
        (
            {("embed", "given"): NONE},
            "the output of embed (Embed, toy) changes first, to or from a value that is not finite",
        ),
        (
            {("embed", "given"): SHUFFLED},
            "the output of embed (Embed, toy) changes first, by 20 % of",
        ),
    ],
)
def test_the_first_module_whose_output_moved_is_named(moved, words):
    first = find_first(model(), model(moved))
    assert first.words.startswith(words)
    assert bool(first.words) == bool(first.names) == bool(words)
    assert find_first(model(moved), model(moved)) == FirstModules()


INSIDE = "the gradient changes inside"
LAST = "(Mlp, toy) (last layer first),"
EMBED = behind(["embed"], 0.3, ("gradient",))
WEIGHTS = behind(["block.mlp"], 0.1, ("weights",)) | EMBED


@pytest.mark.parametrize(
    ("moved", "without", "words"),
    [
        # the gradient at the norm's output comes from the MLP, which gets an equal one
        (
            behind(["block.norm", "block.attention"], 0.3, ("gradient",)) | EMBED,
            (),
            f"{INSIDE} block.mlp {LAST} by 30 % of its n",
        ),
        # what the key gave went into a product of the attention
        (
            behind(["block.attention.key"], 0.3, ("gradient",)) | EMBED,
            (),
            f"{INSIDE} block.attention (Attention, toy)",
        ),
        (EMBED, ("block.attention", "block"), f"{INSIDE} block.attention.query (Query, toy)"),
        (WEIGHTS, (), f"{INSIDE} block.mlp {LAST} by 10 %"),
        (dict.fromkeys(product(NAMES, ["gradient"]), SHUFFLED), (), ""),  # the loss's doing
    ],
)
def test_the_first_module_from_the_end_that_hands_on_another_gradient_is_named(
    moved, without, words
):
    calls = [call for call in MODEL if call.name not in without]
    first = find_first(model(calls=calls), model(moved, calls), backward=True)
    assert first.words.startswith(words)
    assert bool(first.words) == bool(first.names) == bool(words)


def test_gradients_without_digits_weights_held_elsewhere_and_modules_of_one_side_have_not_moved():
    small = {("embed", "gradient"): (1e-4, 0.0, 0.0, 0.0)}
    none = {("embed", "gradient"): (0.0, 0.0, 0.0, 0.0)}
    moved = Moved.measure(parse_modules(model(small)), parse_modules(model(none)), "forward")
    assert moved.shares.gradient[0] == pytest.approx(1e-4 / (1e-3 * 10))
    elsewhere = parse_modules(model({("block.attention.query", "weights"): NONE}))
    assert not Moved.measure(parse_modules(model()), elsewhere, "forward").shares.to_numpy().any()
    assert find_first(model(calls=MODEL[1:]), model(behind(["embed"], 0.5))) == FirstModules()


def written(moved=None, phase="forward", **figures):
    """A record with figures of modules, and with these figures of its first step."""
    file = examples.write_columns("modules", model(moved, phase=phase))
    record = complete("bert_sa_sft")
    step = replace(record.training.first_step, **{"modules": file} | figures)
    return altered(record, "training.first_step", step)


@pytest.mark.parametrize(
    ("phase", "moved", "figures", "words"),
    [
        (
            "forward",
            IN_KEY,
            {"probe_loss": 0.8},
            f"forward: {KEY}; the loss before training is 0.8, it was 0.7",
        ),
        (
            "forward",
            IN_KEY,
            {"weights": {"head": 2.0}},
            f"start: {KEY}; weights before training, layer 0 attention none, be",
        ),
        (
            "dropout",
            IN_KEY,
            {"drawn": "f" * 16},
            f"random numbers: {KEY}; the first update draws other random numbers",
        ),
        (
            "search",
            IN_KEY,
            {"decoded": 0.01},
            f"generation: {KEY}; with a cache, a search's scores are off by 0.01",
        ),
        (
            "forward",
            behind(["block.norm"], 0.3, ("gradient",)),
            {"probe_gradients": {"layer 0 attention": 0.4, "head": 2.0}},
            f"backward without dropout: {INSIDE} block.mlp {LAST} by 30 % of its norm; "
            "gradients of layer 0 attention x 2",
        ),
        (  # an output that moved is the forward pass's, whatever figure shows it first
            "forward",
            IN_KEY,
            {"probe_gradients": {"layer 0 attention": 0.4, "head": 2.0}},
            f"forward: {KEY}; gradients of layer 0 attention x 2 before training, the loss equal",
        ),
        (
            "forward",
            IN_KEY,
            {"probe": "f" * 16, "weights": {"head": 2.0}},
            "start: weights before training",
        ),
        (
            "forward",
            IN_KEY,
            {"modules": None, "probe_loss": 0.8},
            "forward: the loss before training",
        ),
        (
            "forward",
            IN_KEY,
            {"modules": f"modules-{'0' * 16}.parquet", "probe_loss": 0.8},
            "forward: the loss before training",
        ),
        # A module that moved alone may be what is computed of padding
        ("forward", IN_KEY, {}, "all losses are equal"),
    ],
)
def test_the_stage_names_the_module_if_one_is_known(store, phase, moved, figures, words):
    judgement, _ = compare_pair(
        written(phase=phase), written(moved, phase, **figures), load_tolerances()
    )
    assert judgement.detail.startswith(words)
    assert ("toy" in words) is bool(judgement.modules)


def test_a_damaged_file_costs_no_verdict_and_columns_that_are_no_calls_are_refused(store):
    old = written()
    new = written(IN_KEY, probe_loss=0.8)
    (store / new.training.first_step.modules).write_bytes(
        (store / old.training.first_step.modules).read_bytes()
    )
    judgement, _ = compare_pair(old, new, load_tolerances())
    assert judgement.detail.startswith(
        "forward: the loss before training is 0.8, it was 0.7; no module is named: "
    )
    for change in ({"depth": [None] * 8}, {"given_norm": []}):
        with pytest.raises(InputError, match="do not match their calls"):
            parse_modules(model() | change)
