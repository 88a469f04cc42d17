"""What lies between a trained cell and SFT? Points of the model whose weights are (1 - a) x the cell's + a x SFT's.

Both train from one checkpoint at one seed; an adapter is merged first, onto its packed base's own numbers if that is packed.
Validation rows choose the best share between the ends, and only it and the ends are scored on test rows. The gain is that place
minus the better end. The barrier is how far validation points fall below the straight line between the ends, at most (Frankle
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

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of SFT


class Interpolation(Instrument):
    """Points of validation rows by share; of test rows at both ends and at the share that validation rows choose."""

    id = "interpolation"
    question = (
        "what lies between it and SFT? Points of validation rows by SFT's share, of test rows at the ends and the best place"
    )
    figures = {  # noqa: RUF012
        "validation points": Figure(shown=".1f"),
        "points": Figure(shown=".1f"),
        "gain": Figure(better="higher", margin=1.0, shown="+.1f"),
        "barrier": Figure(better="lower", margin=2.0, shown=".1f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Refuse cells whose head is not SFT's: no line leads from one to the other."""
        head, other = cell.cell.head, cell.sft.head
        if head != other:
            raise NotAskedError(f"its head is {head.architecture}, and that of SFT is {other.architecture}")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """SFT is trained, too; then points along the line."""
        model = merged_model(cell)
        first, second = copy_state(model), copy_state(cell.train_other(cell.sft))
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
        barrier = max((1 - share) * means[0.0] + share * means[1.0] - means[share] for share in inner)
        numbers = [f"validation {i}" for i in range(len(validation))]
        return pd.concat(
            [
                *(tidy("validation points", points, part=f"{a:.1f}", row=numbers) for a, points in on_validation.items()),
                *(tidy("points", points, part=f"{a:.1f}", row=cell.row_names) for a, points in on_test.items()),
                tidy("gain", gain, part="best place", row=cell.row_names, note=f"{best:.1f} of SFT"),
                tidy("barrier", barrier),
            ]
        )


def merged_model(cell: TrainedCell) -> Any:
    """The trained model, saved and loaded again, its adapter merged. Raises NotAskedError for one that cannot be merged."""
    with temporary_folder() as folder:
        tokenizer = cell.codec.tokenizer
        cell.serving.save(cell.cell, cell.model, tokenizer, folder)
        if not cell.cell.method.adapts:
            return cell.serving.load(cell.cell, folder, cell.device)[0]
        try:
            base = load_below(cell.cell, folder, tokenizer, cell.device)
            base = base.dequantize() if cell.cell.quantization else base
            return cell.serving.merge(load_adapter(base, folder, cell.device))
        except Exception as error:  # whatever PEFT raises for what it cannot merge
            raise NotAskedError(f"its adapter cannot be merged: {first_line(error)}") from error


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's tensors, numbers in fp32 and weights of linear layers (out, in), as GPT-2's own layers have not."""
    state = {name: tensor.detach().clone() for name, tensor in _transposed(model, model.state_dict()).items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model such tensors."""
    model.load_state_dict(_transposed(model, state))


def _transposed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {name: tensor.T if name in names else tensor for name, tensor in state.items()}


def check_same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Raises NotAskedError if two models have other tensors."""
    shapes = [{(name, tensor.shape) for name, tensor in state.items()} for state in (first, second)]
    if names := sorted(name for name, _ in shapes[0] ^ shapes[1]):
        raise NotAskedError(f"it and SFT have {len(set(names))} tensors that do not match, {names[0]} among them")


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The tensors at a share of the way; at 0 and 1 they are those of the ends, bit for bit."""
    return {
        name: torch.lerp(tensor, second[name].to(tensor), share) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


INSTRUMENT = Interpolation()
