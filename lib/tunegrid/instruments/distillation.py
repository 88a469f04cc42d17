"""Does SFT help as a teacher? The cell trains anew, from its own start on its own rows, but for the loss.

The loss is (1 - ALPHA) x task loss + ALPHA x T^2 x KL(teacher || student), both softmaxes at temperature T (Hinton, Vinyals and
Dean 2015, "Distilling the Knowledge in a Neural Network"; T^2 makes up for gradients that shrink with it, section 2 there). It
is taken on what the task's loss is taken on: a row's label, a span's first and last token, each target token.
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

ALPHA, TEMPERATURE = 0.5, 2.0  # as in transformers' own example, run_squad_w_distillation.py


class Distillation(Instrument):
    """Points of test rows: of the cell as it is, of the same cell taught, and of its teacher."""

    id = "distillation"
    question = "does SFT help as a teacher? Points of the cell alone, of the cell taught by SFT, and of SFT"
    figures = {  # noqa: RUF012
        "points": Figure(shown=".1f"),
        "gain": Figure(better="higher", margin=1.0, shown="+.1f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Refuse cells that SFT answers in another form."""
        head, other = cell.cell.head, cell.sft.head
        if (head.layout, head.new_token) != (other.layout, other.new_token):
            raise NotAskedError("SFT's answers have another format")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """SFT is trained, and then the cell once more, by what SFT says of its rows."""
        assert cell.evaluation, "it was scored"
        points = {"alone": cell.row_points(cell.evaluation)}
        codec = make_codec(cell.cell, load_tokenizer(cell.cell))
        teacher = cell.train_other(cell.sft)
        learn_from(teacher, codec)
        student = cell.train_other(cell.cell, codec)
        points["taught"] = cell.row_points(cell.score(cell.test_rows, student))
        points["teacher"] = cell.row_points(cell.score(cell.test_rows, teacher))
        gain = [taught - alone for alone, taught in zip(points["alone"], points["taught"], strict=True)]
        lines = [tidy("points", values, part=part, row=cell.row_names) for part, values in points.items()]
        return pd.concat([*lines, tidy("gain", gain, part="taught", row=cell.row_names)])


def learn_from(teacher: nn.Module, codec: Codec) -> None:
    """Make a codec's loss that of a student. Without a teacher's share (ALPHA 0) it is the task's own, to the last bit."""
    task_loss, teacher_logits = codec.loss, list[Tensor]()

    def listen(logits: Tensor, labels: Tensor) -> Tensor:
        teacher_logits.append(logits[labels != IGNORED])
        return logits.new_zeros(())

    def student_loss(logits: Tensor, labels: Tensor) -> Tensor:
        student, target = ((one / TEMPERATURE).log_softmax(-1) for one in (logits[labels != IGNORED], teacher_logits.pop(0)))
        gap = TEMPERATURE**2 * kl_div(student, target, reduction="sum", log_target=True)
        return (1 - ALPHA) * summed_cross_entropy(logits, labels) + ALPHA * gap

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        teacher_logits.clear()  # of a pass in which memory ran out
        codec.criterion = listen
        with torch.no_grad():
            task_loss(teacher, batch)
        codec.criterion = student_loss
        return task_loss(model, batch)

    codec.loss = loss  # type: ignore[method-assign]


INSTRUMENT = Distillation()
