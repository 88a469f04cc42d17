"""Which merge serves an adapter that was trained over a packed base? Merges it in three ways and holds each to the adapter.

The trained adapter is saved and loaded again over its packed base: that is what it was trained to be. Merged into that base,
its layers are packed again; merged onto that base's numbers, nothing is packed; merged onto the checkpoint, each layer is off
by what packing had rounded away. Layer by layer each merge is held to the adapter over the same base, so that a layer that the
merge forgot shows, and which base it was is told by its weights.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from tunegrid.audits.evidence import Evidence, sample
from tunegrid.codecs.features import chunks
from tunegrid.errors import first_line
from tunegrid.record.instruments import BaseKind, MergedRecord, MergesRecord
from tunegrid.record.parts import jsonable
from tunegrid.run.build import base_type
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.probe import COARSE, FINE, distance, hooked, logits_of, of_targets, undisturbed
from tunegrid.run.serving import wrappers
from tunegrid.run.weights import bases_below, packed, packed_layers, the_one, weight_of

SAMPLED = 16  # test features whose logits are compared
MOST_CODES = 1e-3  # of a layer's bytes: where a number lies between two levels, its last digit decides
Score = Callable[[nn.Module], Evaluation]
Call = tuple[Tensor, Tensor]  # what a layer was given, and what it made of it


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says to the test rows, and the logits that it gives to some of them."""

    evaluation: Evaluation
    logits: Sequence[Tensor]

    def flips(self, other: "Answers") -> int:
        """How many rows the other one predicts otherwise."""
        pairs = zip(self.evaluation.predictions, other.evaluation.predictions, strict=True)
        return sum(ours.value != theirs.value for ours, theirs in pairs)

    def differences(self, other: "Answers") -> Tensor:
        """Of all logits, without their signs."""
        pairs = zip(self.logits, other.logits, strict=True)
        return torch.cat([(ours.float() - theirs.float()).abs().flatten() for ours, theirs in pairs])


def merges(evidence: Evidence, score: Score) -> MergesRecord:
    """The adapter served over its packed base, and merged in three ways.

    Args:
        evidence: of a trained cell with a packed base.
        score: evaluates a model on the test rows.
    """
    with TemporaryDirectory() as folder, torch.no_grad(), undisturbed(evidence.trainer), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on rounding where it merges and on layers of GPT-2
        return _Merging(evidence, score, Path(folder)).record()


class _Merging:
    """The comparison of one cell, while the saved adapter lies in a folder."""

    def __init__(self, evidence: Evidence, score: Score, folder: Path) -> None:
        """Save the adapter and ask it."""
        self.evidence, self.folder = evidence, folder
        self.device = evidence.trainer.meter.device
        self._score = score
        evidence.serving.save(evidence.cell, evidence.model, evidence.codec.tokenizer, folder)
        served = self._loaded("packed")
        evaluation = score(served)
        self.rows = sample(evaluation.features, SAMPLED)
        self.served = Answers(evaluation=evaluation, logits=self._logits(served))
        self._packed_again: dict[str, Tensor] = {}  # bytes of the layers that merge rightly onto the base's numbers

    def record(self) -> MergesRecord:
        """All three merges beside the served adapter; the one that is packed again is held to the one that is not."""
        unpacked = self._merged("unpacked")
        return MergesRecord(
            rows=len(self.served.evaluation.rows),
            sampled=len(self.rows),
            served=self._main_score(self.served),
            largest_logit=max(float(logits.abs().max()) for logits in self.served.logits),
            packed=self._merged("packed"),
            unpacked=unpacked,
            original=self._merged("original"),
        )

    def _merged(self, base: BaseKind) -> MergedRecord:
        try:
            adapter = self._loaded(base)
            below, calls = bases_below(self.evidence.model, adapter), self._calls(adapter)
            merged = self.evidence.serving.merge(adapter)
        except Exception as error:  # whatever PEFT and transformers raise where they cannot load or merge
            return refused(first_line(error))
        held = self._held(merged, calls)
        lies_on = the_one(below & bases_below(self.evidence.model, merged))
        if base == lies_on == "unpacked":
            self._packed_again = {name: one for name, one in self._bytes(merged).items() if held.get(name)}
        answers = Answers(evaluation=self._score(merged), logits=self._logits(merged))
        differences = self.served.differences(answers)
        return MergedRecord(
            base=lies_on,
            score=self._main_score(answers),
            flips=self.served.flips(answers),
            largest_difference=float(differences.max()),
            mean_difference=float(differences.mean()),
            layers=len(held),
            unlike=[name for name, alike in held.items() if not alike],
            refused=None,
        )

    def _loaded(self, base: BaseKind) -> Any:
        return self.evidence.serving.load_onto(base, self.evidence.cell, self.folder, self.device)

    def _main_score(self, answers: Answers) -> float | None:
        score: float | None = jsonable(answers.evaluation.scores[self.evidence.cell.task.main_score])
        return score

    def _logits(self, model: nn.Module) -> list[Tensor]:
        """Of the sampled rows; of a text only what predicts its target."""
        logits: list[Tensor] = []
        for some in chunks(self.rows, self.evidence.trainer.log.micro_batch):
            answered, batch = logits_of(self.evidence.trainer, some, model)
            logits += of_targets(answered[0], batch) if self.evidence.codec.generates else answered
        return logits

    def _calls(self, adapter: Any) -> dict[str, Call]:
        """What each layer that PEFT changed was given at first, and what it made of it."""
        return first_calls(adapter, lambda: logits_of(self.evidence.trainer, self.rows[:1], adapter))

    def _held(self, merged: Any, calls: Mapping[str, Call]) -> dict[str, bool]:
        """Whether each layer computes after the merge what the adapter computed; one packed again is held to its bytes."""
        layers = {name: merged.get_submodule(name) for name in calls}
        again = self._bytes(merged) if any(isinstance(layer, Linear4bit) for layer in layers.values()) else {}
        known = {name: same_bytes(one, self._packed_again[name]) for name, one in again.items() if name in self._packed_again}
        allowed = FINE if base_type(self.evidence.cell) is torch.float32 else COARSE
        plain_layers = {name: layer for name, layer in layers.items() if name not in again}
        return known | {
            name: distance(calls[name][1], layer(calls[name][0])) <= allowed for name, layer in plain_layers.items()
        }

    def _bytes(self, merged: Any) -> dict[str, Tensor]:
        """The bytes of every merged layer of the packed base: its own, or those that its weight packs to."""
        adapted = wrappers(self.evidence.model)
        layers = {name: layer for name, layer in packed_layers(self.evidence.model).items() if name in adapted}
        return {name: bytes_of(merged.get_submodule(name), layer) for name, layer in layers.items()}


def refused(reason: str) -> MergedRecord:
    """A merge that was refused."""
    return MergedRecord(
        base=None,
        score=None,
        flips=None,
        largest_difference=None,
        mean_difference=None,
        layers=0,
        unlike=[],
        refused=reason,
    )


def first_calls(model: Any, run: Callable[[], Any]) -> dict[str, Call]:
    """The first input and output of each module that PEFT wraps, while `run` runs; by its name in the base."""
    names = {module: name for name, module in wrappers(model).items()}
    calls: dict[str, Call] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(output, Tensor):
            calls.setdefault(names[module], (inputs[0].clone(), output.clone()))

    with hooked(names, look):
        run()
    return calls


def bytes_of(layer: nn.Module, like: Any) -> Tensor:
    """The 4-bit numbers of a layer; one that is not packed is packed as `like` is."""
    numbers: Tensor = layer.weight.data if isinstance(layer, Linear4bit) else packed(weight_of(layer), like).data
    return numbers


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two layers are packed alike, but for numbers between two levels."""
    return ours.shape == theirs.shape and float((ours != theirs).float().mean()) <= MOST_CODES
