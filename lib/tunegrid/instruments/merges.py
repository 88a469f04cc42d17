"""Which merge serves an adapter that was trained over a packed base? Merges it in three ways and holds each to the adapter.

The trained adapter is saved and loaded again over its packed base: that is what it was trained to be. Merged into that base,
its layers are packed again; merged onto that base's numbers, nothing is packed; merged onto the checkpoint, each layer is off
by what packing had rounded away. Layer by layer each merge is held to the adapter over the same base, so that a layer that the
merge forgot shows, and which base it was is told by its weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.audits.evidence import sample
from tunegrid.audits.saved import MOST_CODES, pack_weight
from tunegrid.codecs.features import chunks
from tunegrid.errors import InputError, first_line
from tunegrid.instruments import Figure, Instrument, NotAskedError, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.machine import temporary_folder
from tunegrid.run.build import base_type, unpack_weight
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.probe import COARSE, FINE, attach, distance, get_logits, target_rows
from tunegrid.run.serving import BASE, load_adapter, load_below, wrappers

SAMPLED = 16  # test features whose logits are compared
# A layer that was packed to 4 bits has three sets of numbers: the packed ones; these unpacked, each on one of sixteen levels;
# and the checkpoint's own, which packed give the same 4 bits.
BaseKind = Literal["packed", "unpacked", "original"]  # packed to 4 bits; these 4 bits as numbers; the checkpoint's own numbers
ANY: frozenset[BaseKind] = frozenset(("packed", "unpacked", "original"))
EITHER: frozenset[BaseKind] = frozenset(("unpacked", "original"))  # a checkpoint may have numbers on the levels, too
Call = tuple[Tensor, Tensor]  # what a layer was given, and what it made of it
# Packed comes second: its layers are held to those that merged rightly onto the unpacked numbers.
MEANING: Mapping[BaseKind, str] = {
    "unpacked": "merged onto the packed base's numbers, unpacked",
    "packed": "merged into the packed base, whose layers PEFT packs again",
    "original": "merged onto the checkpoint, which was never packed",
}


class Merges(Instrument):
    """Points, flips and logits of each merge, and whether each layer computes what the adapter computes."""

    id = "merges"
    question = "which merge matches the adapter over its packed base? Flips in percent of rows, differences of logits"
    figures = {  # noqa: RUF012
        "points": Figure(better="higher", margin=1.0, shown=".1f"),
        "change": Figure(better="higher", margin=1.0, shown="+.1f"),
        "flips": Figure(better="lower", margin=1.0, shown=".1f"),
        "mean difference": Figure(shown=".4f"),
        "largest difference": Figure(shown=".3f"),
        "largest logit": Figure(shown=".1f"),
        "own base": Figure(),
        "alike": Figure(),
    }

    def before(self, cell: TrainedCell) -> None:
        """Refuse cells whose base is not packed: of theirs all merges are one."""
        if cell.cell.quantization is None:
            raise NotAskedError("its base is not packed")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """The adapter served over its packed base, and merged in three ways."""
        with temporary_folder() as folder:
            merging = _Merging(cell, folder)
            return pd.concat([*merging.served_lines(), *(line for base in MEANING for line in merging.lines(base))])

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """A sentence for each merge that is not what it is called, or that left layers without the adapter."""
        for base, meaning in MEANING.items():
            lines = figures[figures.part == base]
            for other in lines[(lines.figure == "own base") & (lines.value == 0)].note:
                yield f"what should be {meaning}, lies on {f'the {other} base' if other else 'none of the three bases'}"
            layers = lines[lines.figure == "alike"]
            faults = layers[layers.value == 0].row.tolist()
            if faults:
                yield (
                    f"{meaning}, {len(faults)} of {len(layers)} layers do not compute what the adapter computes over it, "
                    f"{faults[0]} among them"
                )


class _Merging:
    """The comparison of one cell, while the saved adapter lies in a folder."""

    def __init__(self, cell: TrainedCell, folder: Path) -> None:
        """Save the adapter and ask it."""
        self.cell, self.folder = cell, folder
        cell.serving.save(cell.cell, cell.model, cell.codec.tokenizer, folder)
        served = self._load("packed")
        self.served = cell.score(cell.test_rows, served)
        self.rows = sample(self.served.features, SAMPLED)
        self.logits = self._logits(served)
        self._packed_again: dict[str, Tensor] = {}  # bytes of the layers that merge rightly onto the base's numbers

    def served_lines(self) -> Iterator[pd.DataFrame]:
        """Of the adapter that everything is held to."""
        yield tidy("points", self._points(self.served), part="served", row=self.cell.row_names)
        yield tidy("largest logit", max(float(logits.abs().max()) for logits in self.logits), part="served")

    def lines(self, base: BaseKind) -> Iterator[pd.DataFrame]:
        """Of one merge."""
        cell = self.cell
        try:
            adapter = self._load(base)
            bases, calls = bases_below(cell.model, adapter), self._calls(adapter)
            merged = cell.serving.merge(adapter)
        except Exception as error:  # whatever PEFT and transformers raise where they cannot load or merge
            yield tidy("points", float("nan"), part=base, note=f"not merged: {first_line(error)}")
            return
        layer_checks = self._check_layers(merged, calls)
        lies_on = single_base(bases & bases_below(cell.model, merged))
        if base == lies_on == "unpacked":
            self._packed_again = {name: one for name, one in self._bytes(merged).items() if layer_checks.get(name)}
        answers = cell.score(cell.test_rows, merged)
        points, before = self._points(answers), self._points(self.served)
        pairs = zip(self.served.predictions, answers.predictions, strict=True)
        by_row = {
            "points": points,
            "change": [new - old for old, new in zip(before, points, strict=True)],
            "flips": [100.0 * (ours.value != theirs.value) for ours, theirs in pairs],
        }
        for name, values in by_row.items():
            yield tidy(name, values, part=base, row=cell.row_names)
        logits = zip(self.logits, self._logits(merged), strict=True)
        differences = torch.cat([(ours.float() - theirs.float()).abs().flatten() for ours, theirs in logits])
        yield tidy("mean difference", float(differences.mean()), part=base)
        yield tidy("largest difference", float(differences.max()), part=base)
        yield tidy("own base", float(lies_on == base), part=base, note=lies_on or "")
        yield tidy("alike", [float(check) for check in layer_checks.values()], part=base, row=list(layer_checks))

    def _load(self, base: BaseKind) -> Any:
        """The saved adapter over one of the bases. Raises InputError if no checkpoint holds it."""
        cell, folder, device = self.cell.cell, self.folder, self.cell.device
        if base == "packed":
            return self.cell.serving.load(cell, folder, device)[0]
        if base == "original":
            if (folder / BASE).is_dir():
                raise InputError("no checkpoint holds the base: it was saved packed, beside the adapter")
            cell = replace(cell, method=replace(cell.method, quantization=None))
        base_model = load_below(cell, folder, self.cell.codec.tokenizer, device)
        return load_adapter(base_model.dequantize() if base == "unpacked" else base_model, folder, device)

    def _points(self, evaluation: Evaluation) -> list[float]:
        return self.cell.row_points(evaluation)

    def _logits(self, model: nn.Module) -> list[Tensor]:
        """Of the sampled rows; of a text only what predicts its target."""
        logits: list[Tensor] = []
        for rows in chunks(self.rows, self.cell.trainer.log.micro_batch):
            outputs, batch = get_logits(self.cell.trainer, rows, model)
            logits += target_rows(outputs[0], batch) if self.cell.codec.generates else outputs
        return logits

    def _calls(self, adapter: Any) -> dict[str, Call]:
        """What each layer that PEFT changed was given at first, and what it made of it."""
        return first_calls(adapter, lambda: get_logits(self.cell.trainer, self.rows[:1], adapter))

    def _check_layers(self, merged: Any, calls: Mapping[str, Call]) -> dict[str, bool]:
        """Whether each layer computes after the merge what the adapter computed; one packed again is held to its bytes."""
        layers = {name: merged.get_submodule(name) for name in calls}
        packs = self._bytes(merged) if any(isinstance(layer, Linear4bit) for layer in layers.values()) else {}
        checks = {name: same_bytes(one, self._packed_again[name]) for name, one in packs.items() if name in self._packed_again}
        limit = FINE if base_type(self.cell.cell) is torch.float32 else COARSE
        unpacked = {name: layer for name, layer in layers.items() if name not in packs}
        return checks | {name: distance(calls[name][1], layer(calls[name][0])) <= limit for name, layer in unpacked.items()}

    def _bytes(self, merged: Any) -> dict[str, Tensor]:
        """The bytes of every merged layer of the packed base: its own, or those that its weight packs to."""
        adapted = wrappers(self.cell.model)
        layers = {name: layer for name, layer in packed_layers(self.cell.model).items() if name in adapted}
        return {name: layer_bytes(merged.get_submodule(name), layer) for name, layer in layers.items()}


def first_calls(model: Any, run: Callable[[], Any]) -> dict[str, Call]:
    """The first input and output of each module that PEFT wraps, while `run` runs; by its name in the base."""
    names = {module: name for name, module in wrappers(model).items()}
    calls: dict[str, Call] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(output, Tensor):
            calls.setdefault(names[module], (inputs[0].clone(), output.clone()))

    with attach(names, look):
        run()
    return calls


def layer_bytes(layer: nn.Module, like: Any) -> Tensor:
    """The 4-bit numbers of a layer; one that is not packed is packed as `like` is."""
    numbers: Tensor = layer.weight.data if isinstance(layer, Linear4bit) else pack_weight(layer_weight(layer), like).data
    return numbers


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two layers are packed alike, but for numbers between two levels."""
    return ours.shape == theirs.shape and float((ours != theirs).float().mean()) <= MOST_CODES


# The base below an adapter


def bases_below(trained: Any, model: Any) -> frozenset[BaseKind]:
    """What the base below another model's adapter may be; if that is merged, its layers without an adapter tell.

    Args:
        trained: an adapter over a packed base.
        model: the same adapter over some base, or that base with the adapter merged.
    """
    kinds, base = ANY, model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = {name for name, layer in trained.get_base_model().named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in packed_layers(trained).items():
        other = base.get_submodule(name)
        if isinstance(other, BaseTunerLayer):
            kinds &= _kinds(layer, other.get_base_layer())
        elif name not in adapted:
            kinds &= _kinds(layer, other)
    return kinds


def _kinds(layer: Any, other: Any) -> frozenset[BaseKind]:
    """What the second layer may be of the first one."""
    levels = unpack_weight(layer.weight)
    if isinstance(other, Linear4bit):
        return frozenset(("packed",)) if torch.equal(levels, unpack_weight(other.weight)) else frozenset()
    weight = layer_weight(other).to(levels)
    if torch.equal(levels, weight):
        return EITHER
    return frozenset(("original",)) if torch.equal(levels, unpack_weight(pack_weight(weight, layer))) else frozenset()


def single_base(bases: frozenset[BaseKind]) -> BaseKind | None:
    """The one base that it is; None if it is another one, or nothing tells."""
    return "unpacked" if bases == EITHER else next(iter(bases)) if len(bases) == 1 else None


def packed_layers(model: Any) -> dict[str, Any]:
    """The 4-bit layers below an adapter, by the names that they have without it."""
    layers = model.get_base_model().named_modules()
    return {name.removesuffix(".base_layer"): layer for name, layer in layers if isinstance(layer, Linear4bit)}


def layer_weight(layer: nn.Module) -> Tensor:
    """A layer's weight (out, in); GPT-2's layers have it the other way round."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment] # it is a linear layer
    return weight.T if isinstance(layer, Conv1D) else weight


INSTRUMENT = Merges()
