"""Tasks: a data set, how it is split, and the kind of problem it poses. To add one, write a `Task`, put it into `TASKS`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Problem(StrEnum):
    """The kinds of problem; `lib.codecs` has one module for each."""

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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with a question.

    Attributes:
        dataset: id on the hub; `folder` is its name below a `--data-root`.
        columns: the hub's column names, with the JSON type of each.
        train_rows: of the hub's train split, for estimates.
        validation: a split's name, or what is carved out of train; the same for `test`.
        main_score: the score that the summary shows; `bounded_scores` are those that thresholds hold.
    """

    id: str
    name: str
    problem: Problem
    dataset: str
    config: str | None
    columns: Mapping[str, type]
    train_rows: int
    validation: str | Carve
    test: str | Carve
    main_score: str
    bounded_scores: tuple[str, ...]

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
    train_rows=3_600_000,
    validation=Carve(share=0.15, stratify="label"),  # the study splits the labelled pool 70-15-15
    test=Carve(share=0.15, stratify="label"),
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
    train_rows=287_113,
    validation="validation",
    test="test",
    main_score="rougeLsum",
    bounded_scores=("rouge1", "rouge2", "rougeL", "rougeLsum", "bertscore_f1"),
)

TASKS = (SA, QA, SUM)
