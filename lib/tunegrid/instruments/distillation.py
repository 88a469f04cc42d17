"""Retrains a cell with the SFT cell as its teacher, from the same start and on the same rows.

SFT is full fine-tuning. The loss is (1 - ALPHA) x task loss + ALPHA x T^2 x KL(teacher || student),
with both softmaxes at temperature T (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a
Neural Network"). The factor T^2 compensates for gradients that scale as 1/T^2 (ibid., section 2).
The KL term applies wherever the task's loss does: to a row's label, a span's first and last token,
or each target token.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from tunegrid.codecs.base import IGNORED, Batch, Codec, summed_cross_entropy
from tunegrid.instruments import Figure, Instrument, NotAskedError, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.build import load_tokenizer
from tunegrid.run.prepare import make_codec

# Values from transformers' example run_squad_w_distillation.py
ALPHA = 0.5
TEMPERATURE = 2.0


class Distillation(Instrument):
    """Points on test rows for the cell alone, the cell taught by SFT, and SFT itself."""

    id = "distillation"
    question = (
        "does SFT help as a teacher? Points of the cell alone, of the cell taught by SFT, "
        "and of SFT"
    )
    figures = {  # noqa: RUF012
        "points": Figure(shown=".1f"),
        "gain": Figure(better="higher", margin=1.0, shown="+.1f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Raises NotAskedError if no SFT cell can teach, or if its answers differ in format."""
        head = cell.cell.head
        sft_head = cell.sft.head
        if (head.layout, head.new_token) != (sft_head.layout, sft_head.new_token):
            raise NotAskedError("SFT's answers have another format")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Trains SFT, then retrains the cell with SFT as its teacher.

        Compares the original cell, the retrained cell and SFT.
        """
        assert cell.evaluation, "it was scored"
        points = {"alone": cell.row_points(cell.evaluation)}
        codec = make_codec(cell.cell, load_tokenizer(cell.cell))
        teacher = cell.train_other(cell.sft)
        learn_from(teacher, codec)
        student = cell.train_other(cell.cell, codec)
        points["taught"] = cell.row_points(cell.score(cell.test_rows, student))
        points["teacher"] = cell.row_points(cell.score(cell.test_rows, teacher))
        lines = []
        for model, values in points.items():
            lines.append(tidy("points", values, part=model, row=cell.row_names))
        pairs = zip(points["alone"], points["taught"], strict=True)
        gain = [taught - alone for alone, taught in pairs]
        lines.append(tidy("gain", gain, part="taught", row=cell.row_names))
        return pd.concat(lines)


def learn_from(teacher: nn.Module, codec: Codec) -> None:
    """Makes a codec compute the student's loss.

    With ALPHA = 0, it equals the task's loss bit for bit.
    """
    task_loss = codec.loss
    teacher_logits = list[Tensor]()

    def listen(logits: Tensor, labels: Tensor) -> Tensor:
        teacher_logits.append(logits[labels != IGNORED])
        return logits.new_zeros(())

    def student_loss(logits: Tensor, labels: Tensor) -> Tensor:
        student = (logits[labels != IGNORED] / TEMPERATURE).log_softmax(-1)
        target = (teacher_logits.pop(0) / TEMPERATURE).log_softmax(-1)
        gap = TEMPERATURE**2 * kl_div(student, target, reduction="sum", log_target=True)
        return (1 - ALPHA) * summed_cross_entropy(logits, labels) + ALPHA * gap

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        teacher_logits.clear()  # left from a pass that ran out of memory
        codec.criterion = listen
        with torch.no_grad():
            task_loss(teacher, batch)
        codec.criterion = student_loss
        return task_loss(model, batch)

    codec.loss = loss  # type: ignore[method-assign]


INSTRUMENT = Distillation()
