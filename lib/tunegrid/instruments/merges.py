"""Compares three ways to merge an adapter that was trained over a base packed to 4 bits.

The reference is the trained adapter, saved and loaded again over its packed base. Merging into that
base packs the layers again. Merging into the unpacked (dequantized) base packs nothing. Merging
into the original checkpoint shifts each layer by the rounding error of packing. A merged layer is
compared with the adapter's layer over the same base; if it was packed again, its bytes are compared
with those of the unpacked merge. The kind of base is determined from its weights.
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
from tunegrid.run.probe import COARSE, FINE, attach, distance, get_logits, target_rows
from tunegrid.run.serving import BASE, load_adapter, load_below, wrappers

SAMPLED_ROWS = 16  # test features whose logits are compared
# A layer packed to 4 bits has three versions: the packed numbers; the same numbers unpacked, each
# to one of sixteen levels; and the checkpoint's original numbers, which pack to the same bits.
BaseKind = Literal["packed", "unpacked", "original"]
ANY: frozenset[BaseKind] = frozenset(("packed", "unpacked", "original"))
# These are equal if all numbers of the checkpoint happen to be levels.
EITHER: frozenset[BaseKind] = frozenset(("unpacked", "original"))
Call = tuple[Tensor, Tensor]  # a layer's input and output
# "packed" comes second because its layers are compared with those of the unpacked merge.
MEANING: Mapping[BaseKind, str] = {
    "unpacked": "merged onto the packed base's numbers, unpacked",
    "packed": "merged into the packed base, whose layers PEFT packs again",
    "original": "merged onto the checkpoint, which was never packed",
}


class Merges(Instrument):
    """Measures how each merge changes points, predictions (flips) and logits; checks its layers."""

    id = "merges"
    question = (
        "which merge matches the adapter over its packed base? Flips in percent of rows, "
        "differences of logits"
    )
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
        """Raises NotAskedError if the base is not packed, because all merges are then equal."""
        if cell.cell.quantization is None:
            raise NotAskedError("its base is not packed")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Measures the adapter over its packed base, and its three merges."""
        with temporary_folder() as folder:
            merging = _Merging(cell, folder)
            lines = list(merging.served_lines())
            for base in MEANING:
                lines += merging.lines(base)
            return pd.concat(lines)

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """Yields a sentence for each merge with the wrong base, and for each with wrong layers."""
        for base, meaning in MEANING.items():
            lines = figures[figures.part == base]
            for base_note in lines[(lines.figure == "own base") & (lines.value == 0)].note:
                base_text = f"the {base_note} base" if base_note else "none of the three bases"
                yield f"what should be {meaning}, lies on {base_text}"
            layers = lines[lines.figure == "alike"]
            faults = layers[layers.value == 0].row.tolist()
            if faults:
                yield (
                    f"{meaning}, {len(faults)} of {len(layers)} layers do not compute "
                    f"what the adapter computes over it, {faults[0]} among them"
                )


class _Merging:
    """The merges of one cell's adapter, which is saved in a temporary folder."""

    def __init__(self, cell: TrainedCell, folder: Path) -> None:
        """Saves the adapter, and scores it over its packed base."""
        self.cell = cell
        self.folder = folder
        cell.serving.save(cell.cell, cell.model, cell.codec.tokenizer, folder)
        served = self._load("packed")
        self.served = cell.score(cell.test_rows, served)
        self.rows = sample(self.served.features, SAMPLED_ROWS)
        self.logits = self._logits(served)
        self._packed_again: dict[str, Tensor] = {}  # bytes of the unpacked merge's correct layers

    def served_lines(self) -> Iterator[pd.DataFrame]:
        """Yields the lines of the reference, the unmerged adapter."""
        points = self.cell.row_points(self.served)
        yield tidy("points", points, part="served", row=self.cell.row_names)
        largest_logit = max(float(logits.abs().max()) for logits in self.logits)
        yield tidy("largest logit", largest_logit, part="served")

    def lines(self, base: BaseKind) -> Iterator[pd.DataFrame]:
        """Yields the lines of one merge; if it fails, a single line that says why."""
        cell = self.cell
        try:
            adapter = self._load(base)
            bases = bases_below(cell.model, adapter)
            calls = self._calls(adapter)
            merged = cell.serving.merge(adapter)
        except Exception as error:  # PEFT and transformers raise many kinds
            yield tidy("points", float("nan"), part=base, note=f"not merged: {first_line(error)}")
            return
        layer_checks = self._check_layers(merged, calls)
        own_base = single_base(bases & bases_below(cell.model, merged))
        if base == own_base == "unpacked":
            for name, layer in self._bytes(merged).items():
                if layer_checks.get(name):
                    self._packed_again[name] = layer
        answers = cell.score(cell.test_rows, merged)
        points = cell.row_points(answers)
        changes = []
        for before, after in zip(cell.row_points(self.served), points, strict=True):
            changes.append(after - before)
        flips = []
        for served, answer in zip(self.served.predictions, answers.predictions, strict=True):
            flips.append(100.0 * (served.value != answer.value))
        for name, values in {"points": points, "change": changes, "flips": flips}.items():
            yield tidy(name, values, part=base, row=cell.row_names)
        differences = []
        for served_logits, logits in zip(self.logits, self._logits(merged), strict=True):
            differences.append((served_logits.float() - logits.float()).abs().flatten())
        gaps = torch.cat(differences)
        yield tidy("mean difference", float(gaps.mean()), part=base)
        yield tidy("largest difference", float(gaps.max()), part=base)
        yield tidy("own base", float(own_base == base), part=base, note=own_base or "")
        alike = [float(check) for check in layer_checks.values()]
        yield tidy("alike", alike, part=base, row=list(layer_checks))

    def _load(self, base: BaseKind) -> Any:
        """Loads the saved adapter over a base of this kind.

        Raises InputError if no checkpoint holds the original base.
        """
        cell = self.cell.cell
        folder = self.folder
        device = self.cell.device
        if base == "packed":
            return self.cell.serving.load(cell, folder, device)[0]
        if base == "original":
            if (folder / BASE).is_dir():
                cause = "it was saved packed, beside the adapter"
                raise InputError(f"no checkpoint holds the base: {cause}")
            cell = replace(cell, method=replace(cell.method, quantization=None))
        base_model = load_below(cell, folder, self.cell.codec.tokenizer, device)
        if base == "unpacked":
            base_model = base_model.dequantize()
        return load_adapter(base_model, folder, device)

    def _logits(self, model: nn.Module) -> list[Tensor]:
        """The logits of the sampled rows; for generated text, only logits that predict targets."""
        logits: list[Tensor] = []
        for rows in chunks(self.rows, self.cell.trainer.log.micro_batch):
            outputs, batch = get_logits(self.cell.trainer, rows, model)
            if self.cell.codec.generates:
                outputs = target_rows(outputs[0], batch)
            logits += outputs
        return logits

    def _calls(self, adapter: Any) -> dict[str, Call]:
        """The first input and output of each layer that PEFT wraps."""
        return first_calls(adapter, lambda: get_logits(self.cell.trainer, self.rows[:1], adapter))

    def _check_layers(self, merged: Any, calls: Mapping[str, Call]) -> dict[str, bool]:
        """Checks, layer by layer, whether the merge computes what the adapter computed.

        If the merge packed its layers again, their bytes are compared with those of the unpacked
        merge's correct layers.
        """
        layers = {name: merged.get_submodule(name) for name in calls}
        packs = {}
        if any(isinstance(layer, Linear4bit) for layer in layers.values()):
            packs = self._bytes(merged)
        checks = {}
        for name, numbers in packs.items():
            if name in self._packed_again:
                checks[name] = same_bytes(numbers, self._packed_again[name])
        limit = FINE if base_type(self.cell.cell) is torch.float32 else COARSE
        for name, layer in layers.items():
            if name not in packs:
                inputs, output = calls[name]
                checks[name] = distance(output, layer(inputs)) <= limit
        return checks

    def _bytes(self, merged: Any) -> dict[str, Tensor]:
        """The packed bytes of adapted 4-bit layers after a merge, by layer name."""
        adapted = wrappers(self.cell.model)
        numbers = {}
        for name, layer in packed_layers(self.cell.model).items():
            if name in adapted:
                numbers[name] = layer_bytes(merged.get_submodule(name), layer)
        return numbers


def first_calls(model: Any, run: Callable[[], Any]) -> dict[str, Call]:
    """The first input and output of each PEFT-wrapped module during `run`, by name in the base."""
    names = {module: name for name, module in wrappers(model).items()}
    calls: dict[str, Call] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(output, Tensor):
            calls.setdefault(names[module], (inputs[0].clone(), output.clone()))

    with attach(names, look):
        run()
    return calls


def layer_bytes(layer: nn.Module, like: Any) -> Tensor:
    """A layer's 4-bit weight as raw bytes, two codes per byte.

    An unpacked weight is first quantized in the same way as `like`.
    """
    weight: Any = layer.weight
    if not isinstance(layer, Linear4bit):
        weight = pack_weight(layer_weight(layer), like)
    numbers: Tensor = weight.data
    return numbers


def same_bytes(first: Tensor, second: Tensor) -> bool:
    """Checks whether at most a share MOST_CODES of the bytes differ between two packed layers."""
    if first.shape != second.shape:
        return False
    return float((first != second).float().mean()) <= MOST_CODES


# The base below an adapter


def bases_below(trained: Any, model: Any) -> frozenset[BaseKind]:
    """The kinds of base that may lie below a model's adapter.

    If the adapter is merged, only layers without an adapter are examined.

    Args:
        trained: an adapter over a packed base.
        model: the same adapter over any base, or that base with the adapter merged.
    """
    kinds = ANY
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = set()
    for name, layer in trained.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            adapted.add(name)
    for name, layer in packed_layers(trained).items():
        base_layer = base.get_submodule(name)
        if isinstance(base_layer, BaseTunerLayer):
            kinds &= _kinds(layer, base_layer.get_base_layer())
        elif name not in adapted:
            kinds &= _kinds(layer, base_layer)
    return kinds


def _kinds(packed_layer: Any, layer: Any) -> frozenset[BaseKind]:
    """The kinds of base that `layer` may come from; `packed_layer` is this layer in packed form."""
    levels = unpack_weight(packed_layer.weight)
    if isinstance(layer, Linear4bit):
        is_packed = torch.equal(levels, unpack_weight(layer.weight))
        return frozenset(("packed",)) if is_packed else frozenset()
    weight = layer_weight(layer).to(levels)
    if torch.equal(levels, weight):
        return EITHER
    is_original = torch.equal(levels, unpack_weight(pack_weight(weight, packed_layer)))
    return frozenset(("original",)) if is_original else frozenset()


def single_base(bases: frozenset[BaseKind]) -> BaseKind | None:
    """The single kind of base in a set; None if the set is empty or ambiguous.

    If both unpacked and original are possible, the base counts as unpacked.
    """
    if bases == EITHER:
        return "unpacked"
    return next(iter(bases)) if len(bases) == 1 else None


def packed_layers(model: Any) -> dict[str, Any]:
    """All 4-bit layers of a PEFT model's base, adapted or not, by name in the base model."""
    layers = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, Linear4bit):
            layers[name.removesuffix(".base_layer")] = layer
    return layers


def layer_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as (out, in); GPT-2's layers store it as (in, out)."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment] # it is a linear layer
    return weight.T if isinstance(layer, Conv1D) else weight


INSTRUMENT = Merges()
