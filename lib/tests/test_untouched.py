"""Nothing of ours stands in a library's place while a cell runs: what is put there is named, whatever way it came there.

The replacements are small ones of the kinds that this suite once had. Their code is this module's, which counts as ours.
"""

import ast
import functools
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import activations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.library_patches import attention
from lib.codecs.generate import SeparatedCodec
from lib.run.audits import Evidence
from lib.run.audits.libraries import libraries_untouched
from lib.run.owners import ROOT, owner_of
from lib.run.untouched import REASONS, UNKNOWN, WATCH, Watch
from lib.tests.small import rows_of, silent, trainer_of

HERE = "lib/tests/test_untouched.py"
ROWS = rows_of("cnn_dailymail/train")[:8]


@pytest.fixture(scope="module")
def trainer():
    """A quick cell after two updates."""
    trainer = trainer_of("gpt2_sum_qlora", ROWS, max_steps=2)
    trainer.run(silent())
    return trainer


@pytest.fixture
def audit(trainer, monkeypatch):
    """Asks the audit of a cell that began just now; what `monkeypatch` replaces is undone after that."""
    WATCH.begin()
    return lambda **changes: libraries_untouched(Evidence(cell=trainer.cell, codec=trainer.codec, trainer=trainer, **changes))


def test_a_cell_as_it_is_passes_and_says_what_the_suite_does_itself(audit, trainer):
    passed, detail = audit()
    assert passed, detail
    ours = {one.by for one in WATCH.replaced(trainer.model)}
    assert ours - {"lib/machine.py: keep_freed_memory"} == {"lib/run/build.py: keep_packed_layers"}
    assert ours <= set(REASONS)


def test_a_look_costs_little(trainer):
    WATCH.begin()
    began = time.process_time()
    WATCH.inside(trainer.model)
    assert time.process_time() - began < 0.2  # on a quiet core 0.03


def test_looking_imports_nothing():
    before = set(sys.modules)
    Watch().begin()
    assert set(sys.modules) == before


# What the suite once had


def ours(*inputs, **options):
    """A function of ours."""


@pytest.mark.parametrize(
    ("holder", "name", "what"),
    [
        (activations.NewGELUActivation, "forward", "transformers.activations.NewGELUActivation.forward"),
        (bnb.autograd._functions.MatMul4Bit, "backward", "bitsandbytes.autograd._functions.MatMul4Bit.backward"),
        (nn.functional, "scaled_dot_product_attention", "torch.nn.functional.scaled_dot_product_attention"),
        (nn, "Linear", "torch.nn.Linear"),
        (hf.GenerationMixin, "_get_top_k_continuations", "GenerationMixin._get_top_k_continuations"),
    ],
)
def test_a_function_of_ours_in_a_library_is_named(audit, monkeypatch, holder, name, what):
    monkeypatch.setattr(holder, name, ours)
    passed, detail = audit()
    assert not passed
    assert f"{what} by {HERE}: ours" in detail


WRAPS = [staticmethod, classmethod, property, functools.cache, functools.partial, functools.cached_property, torch.no_grad()]


@pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: getattr(wrap, "__name__", "no_grad"))
def test_it_is_named_whatever_it_is_wrapped_in(audit, monkeypatch, wrap):
    monkeypatch.setattr(activations.NewGELUActivation, "forward", wrap(ours))
    assert f"NewGELUActivation.forward by {HERE}: ours" in audit()[1]


def test_it_is_named_if_it_was_there_before_the_cell_began(audit, monkeypatch):
    monkeypatch.setattr(activations.NewGELUActivation, "forward", ours)
    WATCH.begin()
    assert f"NewGELUActivation.forward by {HERE}: ours" in audit()[1]


@pytest.mark.parametrize(
    ("registry", "key"),
    [(ALL_ATTENTION_FUNCTIONS, "sdpa"), (activations.ACT2FN, "gelu_new"), (vars(hf.cache_utils), "Cache")],
)
def test_a_function_of_ours_in_a_registry_is_named(audit, monkeypatch, registry, key):
    monkeypatch.setitem(registry, key, ours)
    assert f"{key} by {HERE}: ours" in audit()[1]


def test_a_method_that_the_model_carries_is_named(audit, monkeypatch, trainer):
    owner = trainer.model.get_base_model()
    monkeypatch.setattr(owner, "forward", ours)
    assert f"GPT2LMHeadModel.forward of the model by {HERE}: ours" in audit()[1]


def test_a_method_that_only_the_model_has_is_named(audit, monkeypatch, trainer):
    monkeypatch.setattr(trainer.model.get_base_model(), "_reorder_cache", ours, raising=False)
    assert f"GPT2LMHeadModel._reorder_cache of the model by {HERE}: ours" in audit()[1]


def test_hooks_of_ours_are_named(audit, trainer):
    handles = [trainer.trained[0].register_hook(ours), trainer.model.register_forward_pre_hook(look_on)]
    try:
        detail = audit()[1]
    finally:
        for handle in handles:
            handle.remove()
    assert f"hook of a parameter by {HERE}: ours" in detail
    assert f"hook of PeftModel of the model by {HERE}: look_on" in detail


def look_on(module, inputs):
    """Changes nothing."""


class Counting(TorchFunctionMode):
    """A mode of ours."""

    def __torch_function__(self, function, types, inputs=(), options=None):
        return function(*inputs, **options or {})


def test_a_mode_of_ours_is_named(audit):
    with Counting():
        assert f"all functions of torch by {HERE}: Counting" in audit()[1]


KERNELS = """
import torch
from torch import nn
from lib.run.untouched import WATCH
WATCH.begin()
library = torch.library.Library("aten", "IMPL")
for operator in ("bernoulli_.float", "_safe_softmax", "mm"):
    library.impl(operator, lambda *inputs, **options: None, "CPU")
print([(one.what, one.by, one.ours) for one in WATCH.inside(nn.Linear(1, 1))])
"""


def test_kernels_of_ours_are_named():
    """In a process of its own, which they may break; compiled as if they stood in this module."""
    run = f"exec(compile({KERNELS!r}, {__file__!r}, 'exec'))"
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", run], cwd=ROOT, capture_output=True, text=True, check=True)
    found = ast.literal_eval(answer.stdout.splitlines()[-1])
    operators = ("_safe_softmax", "bernoulli_.float", "mm")
    assert found == [(f"operator aten::{name} on CPU", f"{HERE}: {name}", True) for name in operators]


# What stands there only meanwhile


class Shared(SeparatedCodec):
    """Replaces attention while it generates, or takes a loss."""

    while_in: str

    def predict(self, *inputs):
        with self.replaced("predict"):
            return super().predict(*inputs)

    def loss(self, *inputs):
        with self.replaced("loss"):
            return super().loss(*inputs)

    @contextmanager
    def replaced(self, way):
        before = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if way == self.while_in:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *inputs, **options: before(*inputs, **options)
        try:
            yield
        finally:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = before


@pytest.mark.parametrize("way", ["predict", "loss"])
def test_what_stands_there_in_a_pass_alone_is_named(audit, trainer, monkeypatch, way):
    codec = Shared(trainer.cell, trainer.codec.tokenizer)
    codec.while_in = way
    monkeypatch.setattr(trainer, "codec", codec)
    passed, detail = audit()
    assert not passed
    assert f"sdpa by {HERE}: Shared.replaced.<locals>.<lambda>" in detail


def test_looking_into_passes_changes_nothing(audit, trainer):
    weights = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    random, updates = torch.get_rng_state(), len(trainer.meter.updates)
    audit()
    assert all(torch.equal(p, weights[name]) for name, p in trainer.parameters.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(trainer.meter.updates) == updates


# Whose


def test_a_users_replacement_is_shown_and_fails_nothing(audit, monkeypatch):
    attention.dropout_at_evaluation(monkeypatch)
    passed, detail = audit()
    assert passed
    assert "not ours:" in detail
    assert "sdpa by attention.py: dropout_at_evaluation.<locals>.always_dropping" in detail


def test_a_function_that_changes_while_the_cell_runs_is_named_though_it_is_a_librarys(audit, monkeypatch):
    monkeypatch.setattr(activations.NewGELUActivation, "forward", activations.FastGELUActivation.forward)
    assert f"transformers.activations.NewGELUActivation.forward by {UNKNOWN}" in audit()[1]


def test_a_class_attribute_that_changes_while_the_cell_runs_is_named(audit, monkeypatch):
    monkeypatch.setattr(hf.T5PreTrainedModel, "_keep_in_fp32_modules", [])
    assert f"T5PreTrainedModel._keep_in_fp32_modules by {UNKNOWN}" in audit()[1]


def test_code_of_a_package_belongs_to_no_stranger():
    assert [owner_of(one) for one in (torch.nn.Linear, hf.set_seed, Path.exists, len, 5, pytest.fixture)] == [None] * 6


# Our code


def test_our_code_assigns_nothing_to_a_library():
    """Not even for a moment: no name that was imported from a library is assigned to, and no kernel or mode is made.

    A footprint looks on at the tensors that operators make, by a mode of its own.
    """
    found = {place for room in ("lib", "fixtures") for path in sources(room) for place in assignments(path)}
    assert found == {"lib/run/footprint.py"}


def sources(room):
    return [path for path in (ROOT / room).rglob("*.py") if "tests" not in path.parts]


def assignments(path):
    """Where a module writes into what it imported from a library, or asks torch for another kernel or mode."""
    tree = ast.parse(path.read_text())
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).split(".")[0]
        in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    }
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        written = [target for target in targets if isinstance(target, ast.Attribute | ast.Subscript)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            written = [node.args[0]]
        named = isinstance(node, ast.Name | ast.Attribute) and getattr(node, "id", getattr(node, "attr", "")) in FORBIDDEN
        if named or any(root(target) in imported for target in written):
            yield str(path.relative_to(ROOT))


FORBIDDEN = ("TorchFunctionMode", "TorchDispatchMode", "Library", "register_kernel", "custom_op", "monkeypatch")


def root(target):
    """The name that a chain of attributes and items begins with."""
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return getattr(target, "id", None)
