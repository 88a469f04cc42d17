"""Trains a cell anew with a teacher's help (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network").

The loss is (1 - alpha) x task loss + alpha x T^2 x KL(teacher || student), where both softmaxes are taken at temperature T: of
logits that are divided by it. The gradients of the second part shrink with 1 / T^2, which the factor makes up for (section 2
there). It is taken on what the task's loss is taken on: a row's label, a span's first and last token, each target token.
"""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from tunegrid.codecs import codec_of
from tunegrid.codecs.base import IGNORED, Batch, Choice, Codec, mean_of
from tunegrid.codecs.features import features_of
from tunegrid.data.splits import Splits
from tunegrid.errors import InputError
from tunegrid.record import Record, new_record
from tunegrid.record.parts import DistilledRecord, TrainingRecord
from tunegrid.record.record import recipe_record
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.meter import Meter
from tunegrid.run.path import Judge, Points
from tunegrid.run.progress import Progress
from tunegrid.run.saved import SAME_TASK, Saved, unlike
from tunegrid.run.training import Trainer


def check_teacher(teacher: Saved, student: Saved) -> None:
    """Raises InputError where a teacher has another backbone, task or rows, or the student would not be trained as it was."""
    if difference := unlike(teacher, student, SAME_TASK):
        raise InputError(f"{teacher.name} cannot teach {student.name}: {difference}")
    if student.record.distilled:
        raise InputError(f"{student.name} had a teacher, {student.record.distilled.cell}: give a student that had none")
    ours, theirs = vars(recipe_record(student.cell)), vars(student.record.recipe)
    if other := [name for name, value in ours.items() if value != theirs[name]]:
        name = other[0]
        raise InputError(
            f"{student.name} was trained with {name} {theirs[name]}, but the recipe has {ours[name]}: save it without --set"
        )


def divergence(student: Choice, teacher: Choice, temperature: float) -> Tensor:
    """T^2 x KL(teacher || student) in nats, summed over the items that count."""
    counted = student.labels != IGNORED
    ours, theirs = ((choice.logits[counted] / temperature).log_softmax(-1) for choice in (student, teacher))
    return temperature**2 * kl_div(ours, theirs, reduction="sum", log_target=True)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a teacher says, and how softly; both by default as in transformers' own example, run_squad_w_distillation.py."""

    alpha: float = 0.5
    temperature: float = 2.0

    def loss(self, codec: Codec, teacher: nn.Module, model: nn.Module, batch: Batch) -> Tensor:
        """Summed over the batch's targets. At alpha 0 its value and its gradients are those of the task's, to the last bit."""
        own = codec.choices(model, batch)
        with torch.no_grad():
            taught = codec.choices(teacher, batch)
        task = mean_of([choice.cross_entropy() for choice in own])
        apart = mean_of([divergence(*both, self.temperature) for both in zip(own, taught, strict=True)])
        return (1 - self.alpha) * task + self.alpha * apart


@dataclass(frozen=True, kw_only=True)
class Student:
    """A cell that was trained with a teacher's help: its model, and what it scores on test rows."""

    model: nn.Module
    tokenizer: Any
    training: TrainingRecord
    score: float
    points: Points


def taught(
    student: Saved, teacher: nn.Module, how: Distillation, splits: Splits, device: torch.device, progress: Progress
) -> Student:
    """Train a saved model's cell as the suite trains it, from the same start on the same rows, but for the loss."""
    cell, tokenizer = student.cell, load_tokenizer(student.cell)
    codec = codec_of(cell, tokenizer)
    model = build(cell, tokenizer, device)
    loss = partial(how.loss, codec, teacher.eval())
    trainer = Trainer(cell, model, codec, features_of(codec, splits.train, training=True), Meter(device=device), loss=loss)
    judge = Judge(codec=codec, device=device)
    training = trainer.run(progress, lambda: (judge.scored(model, splits.validation)[0], splits.validation))
    if training.stopped:
        raise InputError(f"{student.name} could not be trained with this teacher: {training.stopped}")
    score, points = judge.scored(model, splits.test)
    return Student(model=model, tokenizer=tokenizer, training=training, score=score, points=points)


def weights_hash(saved: Saved) -> str:
    """Sixteen hex digits over the files of a saved model's weights."""
    whole = sha256()
    for path in sorted(saved.folder.rglob("*.safetensors")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def record_of(saved: Saved, student: Student, teacher: Saved, how: Distillation) -> Record:
    """The record of a distilled student. No audit saw it, so it stays unfinished: nothing is gated by it."""
    known, seed = saved.record, teacher.record.seeds.seed
    return replace(
        new_record(saved.cell),
        data=known.data,
        model=known.model,
        training=student.training,
        scores={known.main_score: student.score},
        distilled=DistilledRecord(cell=teacher.cell.id, seed=seed, weights=weights_hash(teacher), **vars(how)),
    )
