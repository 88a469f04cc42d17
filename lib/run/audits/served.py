"""The audit of serving: what is saved, loaded into a fresh base and merged computes what was trained.

It runs after training: for a while a second copy of the weights stands beside the first one, on a GPU in the room that
gradients and activations had. Models above `LARGEST_GIB` of weights are not copied, and the finding says so.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lib.codecs.base import Feature
from lib.errors import first_line
from lib.grid.methods import Answer
from lib.run.audits.built import is_adapted
from lib.run.audits.evidence import Evidence, sample
from lib.run.audits.probing import COARSE, FINE, distance, logits_of, of_targets, undisturbed
from lib.run.build import base_type
from lib.run.device import free_memory
from lib.run.meter import GIB, tensor_bytes, weight_tensors

ROWS = 4  # test rows that are asked about, in one batch
LARGEST_GIB = 4.0  # the largest of the study, BERT2BERT at its true size, has 0.95
# Of what an adapter changes in the logits, packing merged weights anew changes 3 % to 21 % on the nine quick cells over NF4. An
# adapter that is lost, or merged twice, changes all of it. After a few updates it changes little more than packing does: up to
# 0.14 of the largest logit.
MERGED_PACKED, PACKING = 0.5, 0.2


def saved_is_served(evidence: Evidence) -> Answer:
    """Saved and loaded again in the documented way, the model gives the same logits; merged into its base, too."""
    if evidence.cell.profile.random_weights:
        return None
    size = tensor_bytes(weight_tensors(evidence.model)) / GIB
    if size > LARGEST_GIB:
        return True, f"not tried: its weights take {size:.1f} GiB, a second copy of which may not fit ({LARGEST_GIB:g} GiB do)"
    device = evidence.trainer.meter.device
    try:
        with TemporaryDirectory() as folder, torch.no_grad(), undisturbed(evidence.trainer), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's on resized embeddings, and on rounding where it merges
            return _served(evidence, Path(folder))
    finally:
        if device.type == "cuda":
            free_memory(device)


def _served(evidence: Evidence, folder: Path) -> Answer:
    cell, model, device = evidence.cell, evidence.model, evidence.trainer.meter.device
    rows = _rows(evidence)
    ours = _logits(evidence, model, rows)
    if not ours:
        return None
    try:
        evidence.serving.save(cell, model, evidence.codec.tokenizer, folder)
        served, tokenizer = evidence.serving.load(cell, folder, device)
    except Exception as error:  # whatever transformers and PEFT raise for files that do not fit
        return False, f"what was saved cannot be loaded again: {type(error).__name__}: {first_line(error)}"
    if strange := _read_otherwise(evidence, tokenizer):
        return False, f"the saved tokenizer has other tokens for {strange[-60:]!r}"
    apart = _apart(ours, _logits(evidence, served, rows))
    detail = f"{len(rows)} rows: served, logits differ by {apart:.1e} of the largest"
    if not apart <= (FINE if base_type(cell) is torch.float32 else COARSE):
        return False, f"{detail}; not as trained: {', '.join(_lost(model, served)[:3]) or 'nothing that trains'}"
    if not isinstance(model, PeftModel):
        return True, detail
    if reason := cell.method.unmergeable(cell):
        return True, f"{detail}; not merged: {reason}"
    passed, merged = _merged(evidence, served, rows, ours)
    return passed, f"{detail}; {merged}"


def _merged(evidence: Evidence, served: Any, rows: Sequence[Feature], ours: Sequence[Tensor]) -> tuple[bool, str]:
    """Whether the loaded adapter, merged into its base, still gives our logits; its base is packed anew where it is packed."""
    packed = evidence.cell.quantization is not None
    without = _without_adapter(evidence, served, rows) if packed else []
    try:
        merged = _logits(evidence, evidence.serving.merge(served), rows)
    except Exception as error:  # whatever PEFT raises where it cannot merge
        return (
            False,
            f"PEFT cannot merge, as `unmergeable` of method {evidence.cell.method.id!r} should say: {first_line(error)}",
        )
    apart = _apart(ours, merged)
    if not packed:
        return apart <= (FINE if base_type(evidence.cell) is torch.float32 else COARSE), f"merged, by {apart:.1e}"
    share = _norm(ours, merged) / _norm(ours, without)
    return (
        share <= MERGED_PACKED or apart <= PACKING,
        f"merged and packed anew, by {apart:.1e}, {share:.0%} of what the adapter changes",
    )


def _without_adapter(evidence: Evidence, served: Any, rows: Sequence[Feature]) -> list[Tensor]:
    """Logits of the base with the trained head and token rows, but without what adapts its layers."""
    layers = [module for module in served.modules() if is_adapted(module)]
    for layer in layers:
        layer.enable_adapters(False)
    logits = _logits(evidence, served, rows)
    for layer in layers:
        layer.enable_adapters(True)
    return logits


def _norm(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The norm of all differences."""
    return math.hypot(*(float((one.float() - other.float()).norm()) for one, other in zip(ours, theirs, strict=True)))


def _rows(evidence: Evidence) -> list[Feature]:
    """A few test rows; training rows where nothing was scored."""
    features = evidence.evaluation.features if evidence.evaluation else evidence.trainer.features
    return sample(features, min(ROWS, evidence.trainer.course.micro_batch))


def _logits(evidence: Evidence, model: nn.Module, rows: Sequence[Feature]) -> list[Tensor]:
    """What a model answers to some rows, without autocast, as in evaluation; of a text only what predicts its target."""
    logits, batch = logits_of(evidence.trainer, rows, model)
    return of_targets(logits[0], batch) if evidence.codec.generates and logits else logits


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest distance of logits; infinite where a vocabulary has another size."""
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        return math.inf
    return max(distance(one, other) for one, other in zip(ours, theirs, strict=True))


def _read_otherwise(evidence: Evidence, tokenizer: Any) -> str | None:
    """A text for which the loaded tokenizer has other tokens than the one that the model was trained with."""
    rows = evidence.evaluation.rows if evidence.evaluation else []
    texts = [*(evidence.codec.text(row) for row in sample(rows, ROWS)), evidence.cell.head.new_token or ""]
    trained = evidence.codec.tokenizer
    return next((text for text in texts if tokenizer(text)["input_ids"] != trained(text)["input_ids"]), None)


def _lost(model: nn.Module, served: nn.Module) -> list[str]:
    """Names of the parameters that trained and did not come back as they were."""
    back = dict(served.named_parameters())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [name for name, p in trained.items() if name not in back or not _equal(p, back[name])]


def _equal(trained: Tensor, loaded: Tensor) -> bool:
    return trained.shape == loaded.shape and torch.equal(trained.to(loaded.dtype), loaded)
