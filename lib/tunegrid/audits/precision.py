"""Audits in which type each operation runs under autocast."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.grid.methods import Answer
from tunegrid.run.build import dtype_name
from tunegrid.run.device import AUTOCAST
from tunegrid.run.probe import get_logits, keep_state, type_of_digits

MATMUL, LAYER_NORM, OTHER_NORM, EMBEDDING = "matmul", "layer norm", "norm", "embedding"
SOFTMAX, LOSS, SUM = "softmax", "loss", "sum"
FUNCTIONS = {
    "softmax": SOFTMAX,
    "log_softmax": SOFTMAX,
    "cross_entropy": LOSS,
    "nll_loss": LOSS,
    "sum": SUM,
}
# What autocast computes in fp32 whatever it is given, by the kind of device; other operations but
# products run in the type of their inputs (docs.pytorch.org/docs/stable/amp.html, "Autocast Op
# Reference").
IN_FP32 = {"cpu": {LOSS}, "cuda": {LAYER_NORM, SOFTMAX, LOSS, SUM}}
MANY_VALUES = 64  # so many values of an fp32 norm do not all fit 16 bits by chance


def operations_run_in_their_types(evidence: Evidence) -> Answer:
    """Matrix products, norms, softmaxes, losses, sums and embeddings run in the documented types.

    Under autocast, a product runs in its type. Other operations run in fp32 or in the type of their
    inputs, depending on the device. The digits of a norm's output must fit its type, too: values
    that were rounded to 16 bits are no fp32 values.
    """
    trainer = evidence.trainer
    rows = evidence.probe.rows[:1]
    types = OperationTypes(trainer.log.precision, evidence.device.type)
    with (
        torch.enable_grad(),
        keep_state(trainer, training=True),
        trainer.accelerator.autocast(),
        types.attached(evidence.model),
        types,
    ):
        get_logits(trainer, rows)
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(types.counts.items()))
    detail = f"operations in {trainer.log.precision}: {kinds}"
    return expect_none(types.faults, detail, "run in another type")


class OperationTypes(TorchFunctionMode):
    """Compares the types of operations' outputs with those that torch documents.

    Modules are seen by hooks, and functions by torch's own mode for them.
    """

    def __init__(self, precision: str, device_type: str) -> None:
        """Takes the precision of autocast ("fp32" for none) and the kind of device."""
        super().__init__()
        self.autocast = AUTOCAST.get(precision)
        self.always_fp32 = IN_FP32.get(device_type, set())
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.faults: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Makes the call, and looks at its output if the function is of a known kind."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in FUNCTIONS and kwargs.get("dtype") is None:
            self.look(FUNCTIONS[name], name, floats([*args, *kwargs.values()]), output)
        return output

    def attached(self, model: nn.Module) -> ExitStack:
        """Looks at the model's layers while the context is open."""
        hooks = ExitStack()
        for name, module in model.named_modules():
            kind = kind_of(module)
            if kind:
                hook = self._hook(kind, name, module)
                hooks.enter_context(module.register_forward_hook(hook))
        return hooks

    def _hook(self, kind: str, name: str, module: nn.Module) -> Any:
        weights = list(module.parameters(recurse=False))

        def look(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.look(kind, name, [*floats(inputs), *weights], output)

        return look

    def look(self, kind: str, name: str, given: Sequence[Tensor], output: Tensor) -> None:
        """Notes a fault unless an operation's output has the type that its inputs call for."""
        if not output.is_floating_point() or not given:
            return
        expected = self.expected_types(kind, {tensor.dtype for tensor in given})
        self.counts[kind] += 1
        found = output.dtype
        if found not in expected:
            names = " or ".join(sorted(map(dtype_name, expected)))
            self.faults.append(f"{name} ({kind}) in {dtype_name(found)}, not {names}")
        elif kind.endswith(OTHER_NORM) and found is torch.float32 and output.numel() >= MANY_VALUES:
            digits = type_of_digits(output.detach())
            if digits != dtype_name(found):
                self.faults.append(f"{name} ({kind}) with the digits of {digits}, not float32")

    def expected_types(self, kind: str, given: set[torch.dtype]) -> set[torch.dtype]:
        """The types that an operation may give, from the types of its inputs and weights."""
        if self.autocast and kind == MATMUL:
            return {self.autocast}
        if self.autocast and kind in self.always_fp32:
            return {torch.float32}
        return given


def kind_of(module: nn.Module) -> str:
    """The kind of a layer with fp32 weights; "" for any other module."""
    weights = list(module.parameters(recurse=False))
    if not weights or any(weight.dtype is not torch.float32 for weight in weights):
        return ""
    if isinstance(module, nn.Linear | Conv1D):
        return MATMUL
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if isinstance(module, nn.LayerNorm):
        return LAYER_NORM
    return OTHER_NORM if "norm" in type(module).__name__.lower() else ""


def floats(values: Sequence[Any]) -> list[Tensor]:
    """All floating-point tensors in nested values."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor for tensor in tensors if tensor.is_floating_point()]
