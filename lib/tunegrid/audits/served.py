"""The audit of serving: what is saved, loaded into a fresh base and merged computes what was trained.

It runs after training: for a while a second copy of the weights stands beside the first one, on a GPU in the room that
gradients and activations had. A model above `LARGEST_GIB` of weights is not copied, and then there is no finding.

PEFT packs a merged NF4 layer anew, which rounds away what is less than half a step between two levels: of what the adapter
changes in the logits, the nine QLoRA cells of the quick grid lost 2 % to 22 %, and six of them 49 to 102 % after four updates.
So over NF4 a merged model is only held to be no farther off than the base without its adapter, and the finding says what is
lost, and which base it was merged onto. An adapter that is merged twice is told in full precision alone: over NF4 it was 26 to
97 % off. `--ask=merges` compares the bases.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunegrid.audits.built import is_adapted
from tunegrid.audits.evidence import Evidence, sample
from tunegrid.codecs.base import Feature
from tunegrid.errors import first_line
from tunegrid.grid.methods import Answer
from tunegrid.run.build import base_type
from tunegrid.run.device import free_memory
from tunegrid.run.meter import GIB, tensor_bytes, weight_tensors
from tunegrid.run.probe import COARSE, FINE, distance, logits_of, of_targets, undisturbed
from tunegrid.run.weights import ANY, BaseKind, bases_below, the_one

ROWS = 4  # test rows that are asked about, in one batch
MERGED: Mapping[BaseKind, str] = {
    "packed": "into the packed base, which is packed anew",
    "unpacked": "onto the unpacked base",
    "original": "onto the checkpoint, which was never packed",
}
LARGEST_GIB = 4.0  # the largest of the study, BERT2BERT at its true size, has 0.95


def saved_is_served(evidence: Evidence) -> Answer:
    """Saved and loaded again in the documented way, the model gives the same logits; merged into its base, too."""
    large = tensor_bytes(weight_tensors(evidence.model)) > LARGEST_GIB * GIB  # a second copy may not fit
    if evidence.cell.profile.random_weights or large:
        return None
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
    if not apart <= _allowed(evidence):
        return False, f"{detail}; not as trained: {', '.join(_lost(model, served)[:3]) or 'nothing that trains'}"
    if not isinstance(model, PeftModel):
        return True, detail
    prompts = "prompts are in no layer" if model.active_peft_config.is_prompt_learning else None
    if reason := prompts or cell.method.unmergeable(cell):
        return True, f"{detail}; not merged: {reason}"
    passed, merged = _merged(evidence, served, rows, ours)
    return passed, f"{detail}; {merged}"


def _merged(evidence: Evidence, served: Any, rows: Sequence[Feature], ours: Sequence[Tensor]) -> tuple[bool, str]:
    """Whether the loaded adapter, merged into its base, still gives our logits."""
    packed, method = evidence.cell.quantization is not None, evidence.cell.method
    without = _without_adapter(evidence, served, rows) if packed else []
    below = bases_below(evidence.model, served)
    try:
        merged = evidence.serving.merge(served)
        logits = _logits(evidence, merged, rows)
    except Exception as error:  # whatever PEFT raises where it cannot merge
        return False, f"PEFT cannot merge {method.id!r}, as its `unmergeable` should say: {first_line(error)}"
    apart = _apart(ours, logits)
    if not packed:
        return apart <= _allowed(evidence), f"merged, by {apart:.1e}"
    told = bases_below(evidence.model, merged)
    base = the_one(below if told == ANY else told)  # with an adapter on every layer, none tells
    if base is None:
        return False, "merged onto another base than the one that it was trained over, packed or not"
    lost, change, size = _gap(ours, logits), _gap(ours, without), _gap(ours, [torch.zeros_like(one) for one in ours])
    share = lost / change if change else 0.0
    allowed = COARSE * size + (0.0 if base == "unpacked" else change)
    return lost <= allowed, f"merged {MERGED[base]}, {share:.0%} of what the adapter changes is lost"


def _without_adapter(evidence: Evidence, served: Any, rows: Sequence[Feature]) -> list[Tensor]:
    """Logits of the base with the trained head and token rows, but without what adapts its layers."""
    layers = [module for module in served.modules() if is_adapted(module)]
    for layer in layers:
        layer.enable_adapters(False)
    logits = _logits(evidence, served, rows)
    for layer in layers:
        layer.enable_adapters(True)
    return logits


def _gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The norm of all differences."""
    return math.hypot(*(float((one.float() - other.float()).norm()) for one, other in zip(ours, theirs, strict=True)))


def _allowed(evidence: Evidence) -> float:
    """How far logits may be apart: on the quick cells 0 when loaded, 1e-6 when merged; a bf16 base rounds head and merger."""
    return FINE if base_type(evidence.cell) is torch.float32 else COARSE


def _rows(evidence: Evidence) -> list[Feature]:
    """A few test rows; training rows where nothing was scored."""
    features = evidence.evaluation.features if evidence.evaluation else evidence.trainer.features
    return sample(features, min(ROWS, evidence.trainer.log.micro_batch))


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
