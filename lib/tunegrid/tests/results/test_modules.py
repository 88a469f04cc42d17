"""The module that changed is named by figures of each module: two tiny models, and plants in one of them, all made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tunegrid.errors import InputError
from tunegrid.results import examples
from tunegrid.results.modules import (
    COLUMNS,
    FIGURES,
    NUMBERS,
    Moved,
    first_modules,
    modules_of,
    share,
)
from tunegrid.results.numerics import compared
from tunegrid.tests.records import altered, complete

BOUND = 1e-4
EQUAL = (10.0, 1.0, 2.0, 3.0)  # a norm and three projections
NONE = (None,) * 4

# Calls in the order in which they end: what goes in, what comes out, the gradient there. Index, name, depth, source, maker:
MODEL = (
    ("embed", 1, -1, 0),
    ("block.attention.query", 3, 0, 1),
    ("block.attention.key", 3, 0, 2),
    ("block.attention", 2, 0, 3),
    ("block.norm", 2, -1, 4),
    ("block.mlp", 2, 4, 5),
    ("block", 1, 0, 5),
    ("", 0, -1, 7),
)


def model(moved=None, order=MODEL, phase="forward"):
    """The columns of a model: each figure is `EQUAL`, or what `moved` says by (name, figure)."""
    moved = moved or {}
    rows = []
    for name, depth, source, maker in order:
        texts = {"phase": phase, "module": name, "kind": (name or "Model").rpartition(".")[2].title(), "library": "toy"}
        figures = {(f, n): x for f in FIGURES.values() for n, x in zip(NUMBERS, moved.get((name, f), EQUAL), strict=True)}
        places = {"call": 1.0, "depth": float(depth), "source": float(source), "maker": float(maker)}
        rows.append(texts | places | {f"{f}_{n}": x for (f, n), x in figures.items()})
    return {column: [row[column] for row in rows] for column in COLUMNS}


def both(moved, **options):
    return modules_of(model(**options)), modules_of(model(moved, **options))


def named(pair, **options):
    """What is said of the modules that changed first, and their names."""
    words, names = first_modules(*pair, "forward", {"module_outputs": BOUND, "module_gradients": BOUND}, **options)
    return words, [name for name, *_ in names]


def by(far):
    """A figure that lies so far from `EQUAL`, as a share of the norm."""
    return (10.0, 1.0 + 10 * far, 2.0, 3.0)


def behind(names, far, figures=("given",)):
    return {(name, figure): by(far) for name in names for figure in figures}


IN_KEY = behind(["block.attention.key", "block.attention", "block", ""], 0.02) | behind(
    ["block.norm", "block.mlp"], 0.02, ("taken", "given")
)


SLOWLY = behind(["block.attention.key"], 2e-5) | behind(["block.norm"], 6e-5, ("taken",)) | behind(["block.norm"], 1.2e-4)
BETWEEN = {name: figure for name, figure in IN_KEY.items() if name[0] != "block.attention.key"}
SIBLINGS = IN_KEY | {("block.attention.query", "given"): by(0.03)}
KEY = "the output of block.attention.key (Key, toy) changes first, by 2 % of its norm; its input is equal"
TWO = (
    "the outputs of block.attention.query (Query, toy) and block.attention.key (Key, toy) change first, "
    "by 3 % and 2 % of their norm; their inputs are equal"
)


@pytest.mark.parametrize(
    ("moved", "found"),
    [
        (IN_KEY, KEY),  # and none of those behind it
        (BETWEEN, "the output of block.attention (Attention, toy) changes first, by 2 % of its norm; its input is equal"),
        (  # the norm gets another input already: the module around it is named
            behind(["block.norm", "block.mlp"], 0.5, ("taken", "given")) | behind(["block", ""], 0.5),
            "the output of block (Block, toy) changes first, by 50 % of its norm; its input is equal",
        ),
        (SIBLINGS, TWO),
        (SIBLINGS | {("embed", "given"): by(0.04)}, None),
        (behind(["block.attention.key", "block.attention", "block", ""], 0.9e-4), ""),  # within the bound
        ({}, ""),
        (SLOWLY, ""),  # each module amplifies rounding twice: what went into the one that crosses the bound moved by half of it
        (
            {(name, figure): by(0.1) for name, *_ in MODEL for figure in ("taken", "given")},
            "the input of the model (Model, toy) is another already",
        ),
        (
            {("embed", "given"): NONE},
            "the output of embed (Embed, toy) changes first, to or from no finite number; its input is equal",
        ),
    ],
)
def test_the_first_module_whose_output_moved_is_named(moved, found):
    words, names = named(both(moved))
    assert words.endswith("their inputs are equal; 1 more module beside") if found is None else words == found
    assert all(name in words for name in names)
    assert bool(names) == bool(words)


def test_a_shuffled_tensor_has_other_projections_and_what_is_no_number_is_infinitely_far():
    shuffled = (10.0, 2.0, 3.0, 1.0)
    figures = np.array([EQUAL, NONE, NONE], float), np.array([shuffled, NONE, (1.0,) * 4], float)
    assert share(*figures).tolist() == [0.2, 0.0, math.inf]
    assert named(both({("embed", "given"): shuffled}))[1] == ["embed"]


# Backward, from the end


EMBED = behind(["embed"], 0.3, ("gradient",))
WEIGHTS = {("block.mlp", "weights"): by(0.1)} | EMBED


@pytest.mark.parametrize(
    ("moved", "without", "found"),
    [
        (  # the gradient at the norm's output comes from the MLP, which gets an equal one
            behind(["block.norm", "block.attention", "embed"], 0.3, ("gradient",)),
            (),
            "the gradient changes inside block.mlp (Mlp, toy) (last layer first), by 30 % of its norm",
        ),
        (  # what the key gave went into a product of the attention
            behind(["block.attention.key", "embed"], 0.3, ("gradient",)),
            (),
            "the gradient changes inside block.attention (Attention, toy) (last",
        ),
        (
            EMBED,
            ("block.attention", "block"),
            "the gradient changes inside block.attention.query (Query, toy) and block.attention.key (Key, toy) (last",
        ),
        (WEIGHTS, (), "the gradient changes inside block.mlp (Mlp, toy) (last layer first), by 10 %"),
        (WEIGHTS | behind(["block.mlp", "block", ""], 0.3, ("gradient",)), (), None),  # it gets another gradient itself
        ({(name, "gradient"): by(0.3) for name, *_ in MODEL}, (), ""),  # the loss's doing
    ],
)
def test_the_first_module_from_the_end_that_hands_on_another_gradient_is_named(moved, without, found):
    words, names = named(both(moved, order=[one for one in MODEL if one[0] not in without]), backward=True)
    if found is None:
        assert "block.mlp" not in names
    else:
        assert words.startswith(found)
        assert bool(names) == bool(found)


def test_gradients_without_digits_weights_held_elsewhere_and_modules_of_one_side_have_not_moved():
    small = {("embed", "gradient"): (1e-4, 0.0, 0.0, 0.0)}
    none = {("embed", "gradient"): (0.0, 0.0, 0.0, 0.0)}
    moved = Moved.between(modules_of(model(small)), modules_of(model(none)), "forward")
    assert moved.shares.gradient[0] == pytest.approx(1e-4 / (1e-3 * 10))
    moved = {("block.attention.query", "weights"): NONE}
    assert not Moved.between(*both(moved), "forward").shares.to_numpy().any()
    new = modules_of(model({("embed", "given"): by(0.5)}))
    old = modules_of(model(order=[one for one in MODEL if one[0] != "embed"]))
    assert named((old, new)) == ("", [])


def record_with(file):
    return altered(complete("bert_sa_sft"), "training.first_step.modules", file)


# What the gate says


TOLERANCES = {
    "fp32": {
        **{"first": 1e-6, "later": 1e-5, "decoded": 1e-4, "curve": 1e-3, "weights": 1e-4, "moved": 1e-2, "moved_alone": 1e-3},
        **{"probe_gradients": 1e-3, "gradients": 1e-3, "module_outputs": BOUND, "module_gradients": BOUND},
    }
}
CACHE = "scores of a search with a cache are off by 0.01 of the largest logit, they were by 1e-06"
DRAWS = "the first update draws others; arithmetic without dropout is equal"
LATER_LOSS = "the loss before training is 0.8, it was 0.7"


def written(moved=None, phase="forward", **figures):
    """A record with figures of modules, and with these figures of its first step."""
    record = record_with(examples.write_columns("modules", model(moved, phase=phase)))
    return altered(record, "training.first_step", replace(record.training.first_step, **figures))


def said(old, new, runs=(None, None)):
    judgement, _ = compared(old, new, TOLERANCES, runs)
    return judgement.detail


@pytest.mark.parametrize(
    ("phase", "figures", "before", "behind"),
    [
        ("forward", {"probe_loss": 0.8}, "forward: ", LATER_LOSS),
        ("forward", {"weights": {"head": 2.0}}, "start: ", "weights before training, layer 0 attention no number, before 10"),
        ("dropout", {"drawn": "f" * 16}, "random numbers: ", DRAWS),
        ("search", {"decoded": 0.01}, "generation: ", CACHE),
    ],
)
def test_the_stage_names_the_module(store, phase, figures, before, behind):
    assert said(written(phase=phase), written(IN_KEY, phase, **figures)) == f"{before}{KEY}; {behind}"


def test_the_backward_stage_names_what_changed_forward_first(store):
    figures = {"probe_gradients": {"layer 0 attention": 0.4, "head": 2.0}}
    words = "gradients of layer 0 attention x 2 before training, forward equal"
    moved = behind(["block.norm"], 0.3, ("gradient",))
    assert said(written(), written(moved, **figures)) == (
        "backward without dropout: the gradient changes inside block.mlp (Mlp, toy) (last layer first), by 30 % of its norm; "
        f"{words}"
    )
    judgement, _ = compared(written(), written(IN_KEY | moved, **figures), TOLERANCES, (None, None))
    assert judgement.detail == f"backward without dropout: {KEY}; {words}"
    assert (judgement.stage, judgement.modules) == ("backward without dropout", (("block.attention.key", "Key", "toy"),))


def test_a_module_that_moved_alone_is_no_change_and_without_figures_the_stage_alone_is_named(store):
    # It may be what the model computes of padding.
    assert said(written(), written(IN_KEY)) == "all losses are equal"
    old, new = written(), written(IN_KEY, probe_loss=0.8)
    assert said(record_with(None), new) == f"forward: {LATER_LOSS}"
    assert said(old, new, None) == f"forward: {LATER_LOSS}"
    (store / old.training.first_step.modules).unlink()
    assert said(old, new) == f"forward: {LATER_LOSS}"
    old, new = written(probe="f" * 16), written(IN_KEY, weights={"head": 2.0})
    assert said(old, new) == "start: weights before training, layer 0 attention no number, before 10"


# Files


def test_figures_are_read_as_they_were_written_and_go_where_a_run_goes(store, tmp_path):
    record, run = record_with(examples.write_columns("modules", model())), tmp_path / "elsewhere" / "run.json"
    name = record.training.first_step.modules
    examples.pack_beside([record], run)
    (store / name).unlink()
    read = examples.read(record, run, "modules")
    assert read.to_dict("list") == model()
    assert examples.write_columns("modules", read) == name
    assert examples.read(record_with(None), None, "modules") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": [None] * 8}, "are not those of at most"),
        ({"source": [1e30] * 8}, "are not those of at most"),
        ({"given_norm": []}, "lack the column given_norm"),
    ],
)
def test_columns_that_are_no_calls_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        modules_of(model() | change)
