"""The audit of an adapter's switches: whether what turns it off, or scales it, can be taken back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from tunegrid.audits.evidence import Evidence
from tunegrid.grid.methods import Answer
from tunegrid.run.probe import distance, logits_of, undisturbed

TWICE = 2.0  # any factor would do


def adapter_survives_its_switches(evidence: Evidence) -> Answer:
    """Turned off and on again, scaled and scaled back, the adapter gives a row the logits that it had, bit for bit."""
    model, rows = evidence.model, evidence.probe.rows[:1]
    if not isinstance(model, PeftModel) or not evidence.probe.alone:
        return None
    scaled = [m for m in model.modules() if isinstance(m, LoraLayer)] if evidence.cell.method.scale_can_be_reset else []
    with torch.no_grad(), undisturbed(evidence.trainer), _as_it_was(model, scaled):
        before = logits_of(evidence.trainer, rows)[0]
        with model.disable_adapter():
            pass
        for layer in scaled:
            layer.scale_layer(TWICE)
            layer.unscale_layer()
        after = logits_of(evidence.trainer, rows)[0]
    apart = max(distance(one, other) for one, other in zip(before, after, strict=True))
    detail = "off and on" + (f", {len(scaled)} layers scaled and scaled back" if scaled else "")
    return not apart, f"{detail}: " + (f"logits differ by {apart:.1e} of the largest" if apart else "bit for bit")


@contextmanager
def _as_it_was(model: nn.Module, scaled: list[Any]) -> Iterator[None]:
    """Afterwards the same parameters train, and scales are what they were, whatever PEFT makes of them."""
    trained = {p: p.requires_grad for p in model.parameters()}
    scales = [(layer, dict(layer.scaling)) for layer in scaled]
    try:
        yield
    finally:
        for parameter, trains in trained.items():
            parameter.requires_grad_(trains)
        for layer, scaling in scales:
            layer.scaling.update(scaling)
