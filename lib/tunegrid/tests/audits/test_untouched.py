"""Nothing of ours stands in a library's place while a cell runs: what is put there is named, whatever way it came there.

The replacements are small ones of the kinds that this suite once had. Their code is this module's, which counts as ours.
"""

import ast
import functools
import inspect
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import activations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.plants.patches import models as attention
from tunegrid import ROOT
from tunegrid.codecs.generate import SeparatedCodec
from tunegrid.run.audits import Evidence
from tunegrid.run.audits.libraries import libraries_untouched
from tunegrid.run.audits.trained import rates_of_transformers
from tunegrid.run.untouched import MONITOR, REASONS, UNKNOWN, LibraryMonitor, owner_of
from tunegrid.tests.processes import apart
from tunegrid.tests.small import rows_of, silent, trainer_of

HERE = "lib/tunegrid/tests/audits/test_untouched.py"
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
    MONITOR.begin()
    return lambda **changes: libraries_untouched(Evidence(cell=trainer.cell, codec=trainer.codec, trainer=trainer, **changes))


def test_a_cell_as_it_is_passes_and_says_what_the_suite_does_itself(audit, trainer):
    passed, detail = audit()
    assert passed, detail
    ours = {one.by for one in MONITOR.replaced(trainer.model)}
    assert ours - {"lib/tunegrid/machine.py: keep_freed_memory"} == {"lib/tunegrid/run/build.py: keep_packed_layers"}
    assert ours <= set(REASONS)


def test_a_look_costs_little(trainer):
    MONITOR.begin()
    began = time.process_time()
    MONITOR.inside(trainer.model)
    assert time.process_time() - began < 0.5  # on a quiet core 0.03


def test_looking_imports_nothing():
    before = set(sys.modules)
    LibraryMonitor().begin()
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
    MONITOR.begin()
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


def found_by(monitor):
    return [(one.what, one.by, one.ours) for one in monitor.inside(nn.Linear(1, 1))]


def with_kernels_of_ours():
    MONITOR.begin()
    library = torch.library.Library("aten", "IMPL")
    for operator in ("bernoulli_.float", "_safe_softmax", "mm"):
        library.impl(operator, lambda *inputs, **options: None, "CPU")
    return found_by(MONITOR)


@pytest.mark.slow
def test_kernels_of_ours_are_named():
    operators = ("_safe_softmax", "bernoulli_.float", "mm")
    named = [(f"operator aten::{name} on CPU", f"{HERE}: {name}", True) for name in operators]
    assert apart(with_kernels_of_ours) == [named]


def with_kernels_by_decorators():
    torch.library.impl("aten::tril", "CPU")(ours)
    monitor = LibraryMonitor()
    monitor.begin()
    found_by(monitor)
    torch.library.impl("aten::mm", "CPU")(ours)
    torch.library.register_kernel("bitsandbytes::dequantize_4bit", "cpu")(ours)
    torch.library.custom_op("somebody::new", mutates_args=(), schema="(Tensor x) -> Tensor")(ours)
    monitor.begin()
    return found_by(monitor)


def test_kernels_that_torchs_decorator_registered_while_cells_ran_are_named_though_nobody_notes_whose_they_are():
    """Also in a later cell, and for an operator that had a kernel of Python's; not for an operator that is no library's."""
    assert apart(with_kernels_by_decorators) == [
        [
            ("operator aten::mm on CPU", UNKNOWN, True),
            ("operator aten::tril on CPU", "torch.library", False),
            ("operator bitsandbytes::dequantize_4bit on CPU", UNKNOWN, True),
        ]
    ]


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


def test_a_function_that_changes_to_a_librarys_is_shown_and_fails_nothing(audit, monkeypatch):
    monkeypatch.setattr(activations.NewGELUActivation, "forward", activations.FastGELUActivation.forward)
    passed, detail = audit()
    assert passed
    by = "transformers/activations.py: FastGELUActivation.forward"
    assert detail.endswith(f"; not ours: transformers.activations.NewGELUActivation.forward by {by}")


def test_a_function_that_changes_to_code_in_no_file_is_named(audit, monkeypatch):
    generated: dict = {}
    exec("def forward(*inputs): ...", generated)
    monkeypatch.setattr(activations.NewGELUActivation, "forward", generated["forward"])
    passed, detail = audit()
    assert not passed
    assert f"NewGELUActivation.forward by {UNKNOWN}" in detail


def without_hook(monkeypatch, kind):
    """The class of an optimizer as it is before its first instance, whose constructor wraps `step` for good."""
    monkeypatch.setattr(kind, "step", inspect.unwrap(kind.step))


STEPS = {"SGD": "torch.optim.sgd.SGD", "Adam": "torch.optim.adam.Adam", "NAdam": "torch.optim.nadam.NAdam"}


@pytest.mark.parametrize("name", STEPS)
def test_an_optimizer_of_torch_wraps_its_own_step_and_fails_nothing(audit, monkeypatch, name):
    kind = getattr(torch.optim, name)
    without_hook(monkeypatch, kind)
    MONITOR.begin()
    kind([torch.zeros(1, requires_grad=True)], lr=0.1)
    passed, detail = audit()
    assert passed, detail
    assert f"{STEPS[name]}.step by torch/optim/optimizer.py: {name}.step" in detail


def test_a_schedule_without_a_formula_here_fails_nothing(audit, trainer, monkeypatch):
    without_hook(monkeypatch, torch.optim.SGD)
    MONITOR.begin()
    recipe = replace(trainer.cell.recipe, lr_scheduler_type="polynomial")
    assert len(rates_of_transformers(replace(trainer.cell, recipe=recipe), 3)) == 3
    passed, detail = audit()
    assert passed, detail
    assert "torch.optim.sgd.SGD.step by torch/optim/optimizer.py" in detail


def with_a_compiled_function():
    MONITOR.begin()
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
    return found_by(MONITOR)


def test_a_function_that_is_compiled_fails_nothing():
    [found] = apart(with_a_compiled_function)
    by = "torch/_dynamo/mutation_guard.py: install_generation_tagging_init.<locals>"
    patched = {("__init__", "patched_init"), ("__setstate__", "patched_setstate")}
    assert {(f"torch.nn.modules.module.Module.{of}", f"{by}.{name}", False) for of, name in patched} <= set(found)
    assert not any(ours for _, _, ours in found)


def test_a_function_of_ours_in_the_closure_of_a_librarys_is_named(audit, monkeypatch):
    monkeypatch.setattr(activations.NewGELUActivation, "forward", transformed(ours))
    assert f"NewGELUActivation.forward by {HERE}: ours" in audit()[1]


def transformed(function):
    """A function of torch that keeps another in its closure, and does not say so."""
    wrapped = torch.optim.Optimizer.profile_hook_step(function)
    del wrapped.__wrapped__
    return wrapped


def test_a_function_that_leads_back_to_itself_is_looked_through_once():
    wrapped = torch.no_grad()(nn.Linear.forward)
    wrapped.__wrapped__ = wrapped
    assert owner_of(wrapped) is None


def test_a_class_attribute_that_changes_while_the_cell_runs_is_named(audit, monkeypatch):
    monkeypatch.setattr(hf.T5PreTrainedModel, "_keep_in_fp32_modules", [])
    assert f"T5PreTrainedModel._keep_in_fp32_modules by {UNKNOWN}" in audit()[1]


def test_code_of_a_package_is_not_reported():
    assert [owner_of(one) for one in (torch.nn.Linear, hf.set_seed, Path.exists, len, 5, pytest.fixture)] == [None] * 6


# Our code


def test_our_code_assigns_nothing_to_a_library():
    """Not even for a moment: no name that was imported from a library is assigned to, and no kernel or mode is made.

    A footprint looks on at the tensors that operators make, by a mode of its own.
    """
    paths = [path for room in ("lib", "fixtures") for path in sources(room)]
    assert [str(path.relative_to(ROOT)) for path in paths if assigns(path.read_text())] == ["lib/tunegrid/run/footprint.py"]


SOURCES = [
    "import torch\n@torch.library.impl('aten::mm', 'CPU')\ndef product(*inputs): ...",
    "from torch.library import impl as kernel\nkernel('aten::mm', 'CPU', print)",
    "import torch\ntorch.library.register_autograd('aten::mm', print)",
    "import torch\nlibrary.fallback(torch.library.fallthrough_kernel, 'CPU')",
    "from transformers import activations\nactivations.gelu = print",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_replaces_is_found(source):
    assert assigns(source)


def test_a_source_that_reads_is_not_found():
    assert not assigns("import torch\nx = torch.library._impls\nx.y = torch.relu")


def sources(room):
    return [path for path in (ROOT / room).rglob("*.py") if "tests" not in path.parts]


def assigns(source):
    """Whether a module writes into what it imported from a library, or asks torch for another kernel or mode."""
    tree = ast.parse(source)
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
        names = {getattr(node, field, None) for field in ("id", "attr", "name")}  # of names, attributes and imports
        if names & FORBIDDEN or any(root(target) in imported for target in written):
            return True
    return False


REGISTERING = ("autocast", "autograd", "fake", "kernel", "torch_dispatch", "vmap")
FORBIDDEN = {"TorchFunctionMode", "TorchDispatchMode", "monkeypatch", "Library", "custom_op", "triton_op", "_scoped_library"}
FORBIDDEN |= {"impl", "impl_abstract", "py_impl", "fallthrough_kernel", *(f"register_{kind}" for kind in REGISTERING)}


def root(target):
    """The name that a chain of attributes and items begins with."""
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return getattr(target, "id", None)
