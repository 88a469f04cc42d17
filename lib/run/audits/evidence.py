"""What audits look at, and what they say. In: the stages' own objects. Out: `Evidence`, and a `Finding` an audit."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from torch import nn

from lib.codecs.base import Codec, Feature
from lib.data.sources import Row
from lib.data.splits import Splits
from lib.grid.cells import Cell
from lib.grid.tasks import Problem
from lib.run.evaluation import Evaluation
from lib.run.fingerprints import Mark, model_marks
from lib.run.training import Trainer

SAMPLE = 8  # rows that are decoded again


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a cell's run leaves behind.

    Attributes:
        cell: the cell as labelled.
        splits, evaluation: None where there was no text, or training stopped.
    """

    cell: Cell
    codec: Codec
    trainer: Trainer
    splits: Splits | None = None
    evaluation: Evaluation | None = None

    @cached_property
    def after(self) -> dict[str, Mark]:
        """Marks of the weights after training."""
        return model_marks(self.model)

    @property
    def model(self) -> nn.Module:
        """The model after training."""
        return self.trainer.model


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an audit found.

    Attributes:
        of_learning: it judges how far training got, not how it was done: a run of a few updates is not held to it.
    """

    name: str
    passed: bool
    detail: str
    of_learning: bool = False


Answer = tuple[bool, str] | None  # passed, detail; None where the audit has nothing to look at


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter or layer belongs to one of these modules."""
    return any(f".{module}." in f".{name}." for module in modules)


def sample(features: Sequence[Feature], count: int = SAMPLE) -> list[Feature]:
    """The same few each time."""
    return list(features) if len(features) <= count else Random(0).sample(list(features), count)


def text_of(cell: Cell) -> Callable[[Row], str]:
    """What makes a row the row it is: the text that its cell reads."""
    columns = cell.recipe.text or {Problem.EXTRACT: ("question", "context"), Problem.GENERATE: ("article",)}[cell.task.problem]
    return lambda row: " ".join(" ".join(row[name] for name in columns).lower().split())


def letters(text: str) -> str:
    """A text's letters and digits alone, without accents: what survives every tokenizer."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def same_letters(tokens: str, text: str, codec: Codec) -> bool:
    """Whether decoded tokens are a text, as far as the tokenizer knows its words; a token may reach beyond it."""
    unknown = codec.tokenizer.unk_token
    return letters(text) in letters(tokens) or bool(unknown and unknown in tokens)
