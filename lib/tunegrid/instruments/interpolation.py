"""Scores models between a trained cell and SFT, with weights (1 - a) x the cell's + a x SFT's.

SFT, full fine-tuning, starts from the same checkpoint with the same seed. An adapter is merged
first; for this, a base packed to 4 bits is unpacked (dequantized). Validation rows select the best
share a between the ends 0 and 1; only this share and the ends are scored on test rows. The gain is
the test points of the best share minus those of the end with more points on validation rows. The
barrier is the largest drop of validation points below the straight line between the ends (Frankle
et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis").
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.data.sources import Row
from tunegrid.errors import first_line
from tunegrid.instruments import Figure, Instrument, NotAskedError, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.machine import temporary_folder
from tunegrid.run.serving import load_adapter, load_below

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of SFT that are tried


class Interpolation(Instrument):
    """Points on validation rows at each share, and on test rows at the ends and the best share."""

    id = "interpolation"
    question = (
        "what lies between it and SFT? Points of validation rows by SFT's share, "
        "of test rows at the ends and the best place"
    )
    figures = {  # noqa: RUF012
        "validation points": Figure(shown=".1f"),
        "points": Figure(shown=".1f"),
        "gain": Figure(better="higher", margin=1.0, shown="+.1f"),
        "barrier": Figure(better="lower", margin=2.0, shown=".1f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Raises NotAskedError if there is no SFT cell to compare with, or if its head differs."""
        head = cell.cell.head.architecture
        sft_head = cell.sft.head.architecture
        if cell.cell.head != cell.sft.head:
            raise NotAskedError(f"its head is {head}, and that of SFT is {sft_head}")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Trains SFT and scores models along the line from the cell to SFT."""
        model = merged_model(cell)
        first = copy_state(model)
        second = copy_state(cell.train_other(cell.sft))
        check_same_tensors(first, second)
        assert cell.splits, "training had rows"
        validation = cell.splits.validation

        def points_at(share: float, rows: Sequence[Row]) -> list[float]:
            load_state(model, interpolate(first, second, share))
            return cell.row_points(cell.score(rows, model))

        on_validation = {share: points_at(share, validation) for share in SHARES}
        means = {share: fmean(points) for share, points in on_validation.items()}
        inner = SHARES[1:-1]
        best = max(inner, key=means.__getitem__)
        on_test = {share: points_at(share, cell.test_rows) for share in (0.0, best, 1.0)}
        better_end = on_test[0.0 if means[0.0] >= means[1.0] else 1.0]
        gain = [new - old for old, new in zip(better_end, on_test[best], strict=True)]
        gaps = []
        for share in inner:
            gaps.append((1 - share) * means[0.0] + share * means[1.0] - means[share])
        numbers = [f"validation {i}" for i in range(len(validation))]
        note = f"{best:.1f} of SFT"
        lines = []
        for share, points in on_validation.items():
            lines.append(tidy("validation points", points, part=f"{share:.1f}", row=numbers))
        for share, points in on_test.items():
            lines.append(tidy("points", points, part=f"{share:.1f}", row=cell.row_names))
        lines.append(tidy("gain", gain, part="best place", row=cell.row_names, note=note))
        lines.append(tidy("barrier", max(gaps)))
        return pd.concat(lines)


def merged_model(cell: TrainedCell) -> Any:
    """Saves the trained model, loads it again and merges its adapter, if it has one.

    Raises NotAskedError if the adapter cannot be merged.
    """
    tokenizer = cell.codec.tokenizer
    with temporary_folder() as folder:
        cell.serving.save(cell.cell, cell.model, tokenizer, folder)
        if not cell.cell.method.adapts:
            return cell.serving.load(cell.cell, folder, cell.device)[0]
        try:
            base = load_below(cell.cell, folder, tokenizer, cell.device)
            if cell.cell.quantization:
                base = base.dequantize()
            return cell.serving.merge(load_adapter(base, folder, cell.device))
        except Exception as error:  # PEFT raises many kinds
            raise NotAskedError(f"its adapter cannot be merged: {first_line(error)}") from error


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies a model's tensors, converting floats to fp32 and transposing Conv1D weights."""
    state = {}
    for name, tensor in _transposed(model, model.state_dict()).items():
        copy = tensor.detach().clone()
        state[name] = copy.float() if copy.is_floating_point() else copy
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads tensors from `copy_state` into a model."""
    model.load_state_dict(_transposed(model, state))


def _transposed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the weights of GPT-2's Conv1D layers transposed."""
    tensors = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].T
    return tensors


def check_same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Raises NotAskedError if two models differ in the names or shapes of their tensors."""
    first_shapes = {name: tensor.shape for name, tensor in first.items()}
    second_shapes = {name: tensor.shape for name, tensor in second.items()}
    names = {name for name, _ in first_shapes.items() ^ second_shapes.items()}
    if names:
        tensors = f"{len(names)} tensors that do not match, {min(names)} among them"
        raise NotAskedError(f"it and SFT have {tensors}")


def interpolate(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    share: float,
) -> dict[str, Tensor]:
    """Interpolates float tensors; shares 0 and 1 give `first` and `second` bit for bit."""
    tensors = dict(first)
    for name, tensor in first.items():
        if tensor.is_floating_point():
            tensors[name] = torch.lerp(tensor, second[name].to(tensor), share)
    return tensors


INSTRUMENT = Interpolation()
