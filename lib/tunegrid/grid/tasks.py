"""Declares the study's three `Task`s, each with its data set, its splits and its problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.grid.metrics import Metric


class Problem(StrEnum):
    """The kinds of problem; `tunegrid.codecs` has a module for each."""

    CLASSIFY = "classify"
    EXTRACT = "extract"
    GENERATE = "generate"


FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # formats of a split's file
GZIP = ".gz"  # may follow any of them except .parquet, which compresses itself


def file_kind(path: str | Path) -> str:
    """Returns a file's extension, ignoring a final ".gz", if it is in `FILE_KINDS`; else ""."""
    name = str(path).lower()
    kind = Path(name.removesuffix(GZIP)).suffix
    if kind not in FILE_KINDS or (kind == ".parquet" and name.endswith(GZIP)):
        return ""
    return kind


@dataclass(frozen=True, kw_only=True)
class Carve:
    """A share of the train split to set aside.

    Attributes:
        share: of the whole train split, between 0 and 1.
        stratify: a column whose values keep their proportions.
        group: a column; rows with the same value stay on the same side, so that, for example, no
            article is both learned and scored.
    """

    share: float
    stratify: str | None = None
    group: str | None = None


BY_LABEL = ("precision", "recall", "f1")  # scores that a classification has for each label


def score_names(problem: Problem, labels: int) -> tuple[str, ...]:
    """The names of a problem's scores, including the scores in `BY_LABEL` for each label."""
    if problem is Problem.EXTRACT:
        return ("exact_match", "f1")
    if problem is Problem.GENERATE:
        rouge = ("rouge1", "rouge2", "rougeL", "rougeLsum")
        return (*rouge, "bertscore_precision", "bertscore_recall", "bertscore_f1")
    names = ["accuracy", "f1_macro"]
    for label in range(labels):
        names += [f"{name}_{label}" for name in BY_LABEL]
    return tuple(names)


def score_title(name: str, labels: Sequence[str]) -> str:
    """A score's name for readers, such as "precision, negative" for `precision_0`."""
    score, _, label = name.rpartition("_")
    is_labelled = score in BY_LABEL and label.isdecimal() and int(label) < len(labels)
    return f"{score}, {labels[int(label)]}" if is_labelled else name


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and what to predict from it.

    Attributes:
        dataset: id on the hub; `folder` is its name below a `--data-root`.
        files: the path of each split's file (`FILE_KINDS`), by split. A path is absolute, or
            relative to the folder of the `--grid` file or to `folder`. If there are none, `folder`
            must have a file named after each split. Rows come only from these files if all paths
            are absolute or any of the files is next to the `--grid` file.
        columns: the hub's column names, with the JSON type of each; `str` for labels given by name.
        text: columns to read, joined by line breaks; `Recipe.text` may choose others.
        text_pair: columns of the second text: a hypothesis, or the passage after a question.
        identity: columns that decide whether rows count as the same; empty means all that are read.
            A row that is also in a scored split is dropped from train.
        messages: the hub's column that holds conversations in its chat format; each is read as a
            row {history, prompt, reply}.
        target: the column to predict.
        labels: names of the classes in the order of their numbers, for classification only. Rows
            may hold names or numbers.
        train: the split to learn from.
        train_rows: maximum number of rows to train on, unless the profile sets one; None takes all.
        validation, test: a split's name, or a share of train.
        own_test: the split that `--set own_test=true` scores on instead of `test`.
        main_score: the score that the run table shows.
        bounded_scores: scores that bounds and gates compare.
        metrics: a user's own scores, which `Grid.add_metric` adds.
    """

    id: str
    name: str
    problem: Problem
    dataset: str
    config: str | None = None
    files: Mapping[str, str | Path] = field(default_factory=dict)
    columns: Mapping[str, type]
    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    messages: str | None = None
    target: str
    labels: tuple[str, ...] = ()
    train: str = "train"
    train_rows: int | None = None
    validation: str | Carve
    test: str | Carve
    own_test: str | None = None
    main_score: str
    bounded_scores: tuple[str, ...]
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError, with a remedy, if fields are invalid or contradict each other."""
        if fault := next(self._faults(), None):
            raise InputError(f"task {self.id!r}: {fault}")
        if self.labels and self.columns[self.target] is str:  # label names are read as numbers
            object.__setattr__(self, "columns", dict(self.columns) | {self.target: int})

    def _faults(self) -> Iterator[str]:
        for name in ("text", "text_pair", "identity", "labels", "bounded_scores"):
            value = getattr(self, name)
            if isinstance(value, str):
                yield f'{name} is a text, not several; write {name}=("{value}",)'
        if not isinstance(self.columns, Mapping):
            yield (
                "columns must say the type of each; write columns={NAME: str}, or int, dict or list"
            )
        for column in (*self.text, *self.text_pair, *self.identity, self.target):
            if column not in self.columns:
                names = ", ".join(self.columns)
                yield f"it reads {column!r}, which is not among its columns ({names}): add it there"
        for split, path in self.files.items():
            if not file_kind(path):
                yield f"{path} of split {split!r} is not one of {', '.join(FILE_KINDS)}"
        for split in self.splits:
            if self.files and split not in self.files:
                hint = "add it to files, or give the split the name of one"
                yield f"it has no file of split {split!r}; {hint}"
        if (self.problem is Problem.CLASSIFY) != (len(self.labels) > 1):
            yield "only a classification names labels, and at least two"
        if self.messages and self.problem is not Problem.GENERATE:
            yield "a conversation is for a task that generates its reply; leave out messages"
        if self.main_score not in self.bounded_scores:
            yield f"main_score {self.main_score!r} is not among its bounded_scores"
        scores = score_names(self.problem, len(self.labels))
        for metric in self.metrics:
            if metric.name in scores:
                yield f"it has a score {metric.name!r} already; give the metric another name"
            scores += (metric.name,)
        for name in self.bounded_scores:
            if name not in scores:
                yield f"unknown score {name!r}; a task to {self.problem} has {', '.join(scores)}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the data set's splits to read, without those that are carved out of train."""
        splits = (self.train, self.validation, self.test)
        return tuple(dict.fromkeys(split for split in splits if isinstance(split, str)))

    @property
    def has_own_rows(self) -> bool:
        """True if rows come only from the task's files, not from the hub or `--data-root`."""
        return bool(self.files) and all(Path(path).is_absolute() for path in self.files.values())

    def with_files_in(self, folder: Path | None) -> "Task":
        """The task with its relative file paths resolved against `folder`.

        Returns the task unchanged if none of the files exists.
        """
        if folder is None:
            return self
        files = {split: folder / path for split, path in self.files.items()}
        if not any(map(Path.is_file, files.values())):
            return self
        return replace(self, files=files)

    @property
    def hub_columns(self) -> Mapping[str, type]:
        """Columns that the data set must have: `columns`, or only `messages` if it is set."""
        return {self.messages: list} if self.messages else self.columns

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Columns read in addition to `text`: those of a second text, or the earlier turns."""
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
