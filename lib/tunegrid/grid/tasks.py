"""Declares the study's three `Task`s: a data set, how it is split, and the kind of problem it poses."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tunegrid.errors import InputError


class Problem(StrEnum):
    """The kinds of problem; `tunegrid.codecs` has one module for each."""

    CLASSIFY = "classify"
    EXTRACT = "extract"
    GENERATE = "generate"


@dataclass(frozen=True, kw_only=True)
class Carve:
    """A share of the train split that is set aside.

    Attributes:
        share: of the whole train split, between 0 and 1.
        stratify: column whose values keep their proportions.
        group: column whose values stay together on one side, so that no article is both learned and scored.
    """

    share: float
    stratify: str | None = None
    group: str | None = None


def score_names(problem: Problem, labels: int) -> tuple[str, ...]:
    """The scores that a kind of problem has; a classification has some for each label."""
    by_label = (f"{name}_{label}" for label in range(labels) for name in ("precision", "recall", "f1"))
    return {
        Problem.CLASSIFY: ("accuracy", "f1_macro", *by_label),
        Problem.EXTRACT: ("exact_match", "f1"),
        Problem.GENERATE: (
            *("rouge1", "rouge2", "rougeL", "rougeLsum"),
            *("bertscore_precision", "bertscore_recall", "bertscore_f1"),
        ),
    }[problem]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with a question.

    Attributes:
        dataset: id on the hub; `folder` is its name below a `--data-root`.
        columns: the hub's column names, with the JSON type of each.
        text: columns that are read, joined by a line break; `Recipe.text` may choose others.
        text_pair: columns of the second text: a hypothesis, the passage behind a question.
        identity: columns that tell whether two rows are one; empty: all that is read. A row that stands in a split which
            scores is dropped from train.
        messages: the hub's column of a conversation in its chat schema, of which rows {history, prompt, reply} are made.
        target: the column that is learned.
        labels: names of the classes, in the order of their numbers; for classification only.
        train_rows: of the hub's train split, for estimates; None is not known.
        validation: a split's name, or what is carved out of train; the same for `test`.
        own_test: a split that `--set own_test=true` scores on, where `test` is carved out of train.
        main_score: the score that the run table shows; `bounded_scores` are those that thresholds and gates hold.
    """

    id: str
    name: str
    problem: Problem
    dataset: str
    config: str | None = None
    columns: Mapping[str, type]
    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    messages: str | None = None
    target: str
    labels: tuple[str, ...] = ()
    train_rows: int | None = None
    validation: str | Carve
    test: str | Carve
    own_test: str | None = None
    main_score: str
    bounded_scores: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises InputError where the entry contradicts itself."""
        for column in (*self.text, *self.text_pair, *self.identity, self.target):
            if column not in self.columns:
                raise InputError(f"task {self.id!r} reads column {column!r}, which is not among its columns")
        if (self.problem is Problem.CLASSIFY) != (len(self.labels) > 1):
            raise InputError(f"task {self.id!r}: only a classification names labels, and at least two")
        if self.main_score not in self.bounded_scores:
            raise InputError(f"task {self.id!r}: main_score {self.main_score!r} is not among its bounded_scores")
        known = score_names(self.problem, len(self.labels))
        for name in self.bounded_scores:
            if name not in known:
                raise InputError(f"task {self.id!r}: unknown score {name!r}; a task to {self.problem} has {', '.join(known)}")

    @property
    def hub_columns(self) -> tuple[str, ...]:
        """The columns that a data set must have: those of the rows, or that of conversations which they are made of."""
        return (self.messages,) if self.messages else tuple(self.columns)

    @property
    def beside(self) -> tuple[str, ...]:
        """What is read beside `text`: a second text, or what was said before a prompt."""
        return ("history",) if self.messages else self.text_pair

    @property
    def folder(self) -> str:
        """The data set's name without its owner."""
        return self.dataset.split("/")[-1]


SA = Task(
    id="sa",
    name="sentiment analysis",
    problem=Problem.CLASSIFY,
    dataset="fancyzhx/amazon_polarity",
    config=None,
    columns={"label": int, "title": str, "content": str},
    text=("title", "content"),
    identity=("content",),  # the study's BERT does not read the title
    target="label",
    labels=("negative", "positive"),
    train_rows=3_600_000,
    validation=Carve(share=0.15, stratify="label"),  # the study splits the labelled pool 70-15-15
    test=Carve(share=0.15, stratify="label"),
    own_test="test",
    main_score="accuracy",
    bounded_scores=("accuracy", "f1_macro"),
)
QA = Task(
    id="qa",
    name="question answering",
    problem=Problem.EXTRACT,
    dataset="rajpurkar/squad",
    config=None,
    columns={"id": str, "title": str, "context": str, "question": str, "answers": dict},
    text=("question",),
    text_pair=("context",),
    target="answers",
    train_rows=87_599,
    validation=Carve(share=0.1, group="title"),
    test="validation",  # SQuAD's own test split was never published
    main_score="f1",
    bounded_scores=("exact_match", "f1"),
)
SUM = Task(
    id="sum",
    name="summarization",
    problem=Problem.GENERATE,
    dataset="abisee/cnn_dailymail",
    config="3.0.0",
    columns={"article": str, "highlights": str, "id": str},
    text=("article",),
    target="highlights",
    train_rows=287_113,
    validation="validation",
    test="test",
    main_score="rougeLsum",
    bounded_scores=("rouge1", "rouge2", "rougeL", "rougeLsum", "bertscore_f1"),
)

TASKS = (SA, QA, SUM)
