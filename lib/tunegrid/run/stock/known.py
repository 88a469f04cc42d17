"""Known differences between the libraries' path and ours, as data. A guide shows them; a test fails when one is mended.

A difference that concerns arithmetic is one that ours can reckon with (`tunegrid.run.stock.oracle`): then nothing else may
differ, at its stage or behind it, and no tolerance is wide for its sake.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem


@dataclass(frozen=True, kw_only=True)
class KnownDifference:
    """One difference.

    Attributes:
        id: what `known` of a record's stages and the oracle call it.
        stage: the first at which it shows.
        component: whose doing it is.
        what: what the libraries do, and what ours does.
        since: the release in which it was measured here; nobody looked at older ones.
        upstream: where it was reported, as far as is known; empty: nowhere that we know of.
        concerns: whether it concerns a cell.
        shown_by: a cell that shows it, and the fields of its recipe that must change for it.
    """

    id: str
    stage: str
    component: str
    what: str
    since: str
    upstream: str = ""
    concerns: Callable[[Cell], bool]
    shown_by: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def causal(cell: Cell) -> bool:
    """Whether a generating cell has source and target in one sequence."""
    return cell.head.layout is not Layout.ENCODER_DECODER


def _of(problem: Problem) -> Callable[[Cell], bool]:
    return lambda cell: cell.task.problem is problem


def _generates_pairs(cell: Cell) -> bool:
    return cell.task.problem is Problem.GENERATE and cell.head.layout is Layout.ENCODER_DECODER


def _repacks(cell: Cell) -> bool:
    from bitsandbytes.functional import has_avx512bf16  # loads torch, which the table itself does not need

    return cell.quantization is not None and bool(has_avx512bf16())


def _separated(cell: Cell) -> bool:
    return cell.task.problem is Problem.GENERATE and causal(cell)


TRANSFORMERS = "transformers 5.24.0"
KNOWN: tuple[KnownDifference, ...] = (
    KnownDifference(
        id="short_last_window",
        stage="windows",
        component="tokenizers, stride and overflow",
        what="the last window of a passage begins where its turn is and may be short; ours reaches back until it is full",
        since="tokenizers 0.23.3",
        concerns=lambda cell: cell.task.problem is Problem.EXTRACT and cell.recipe.doc_stride is not None,
        shown_by="bert_qa_sft",
    ),
    KnownDifference(
        id="no_separator",
        stage="windows",
        component="GPT-2's tokenizer, pairs of texts",
        what="nothing stands between question and passage; ours puts the end token there",
        since=TRANSFORMERS,
        concerns=lambda cell: bool(cell.task.text_pair) and cell.backbone.wrap.after is None,
        shown_by="gpt2_qa_lora",
    ),
    KnownDifference(
        id="answerless_rows",
        stage="windows",
        component="transformers' guide to question answering",
        what="a row whose answer is cut off trains the first token as its answer; ours leaves such a row out",
        since=TRANSFORMERS,
        concerns=_of(Problem.EXTRACT),
        shown_by="t5_qa_sft",
        changes={"max_length": 40},
    ),
    KnownDifference(
        id="biases_rounded_late",
        stage="start",
        component="bitsandbytes, Linear4bit",
        what="frozen biases are rounded by the first forward pass; ours rounds them when the model is made",
        since="bitsandbytes 0.50.2",
        upstream="reports/upstream/bitsandbytes_biases.py",
        concerns=lambda cell: cell.quantization is not None,
        shown_by="bert_sa_qlora",
    ),
    KnownDifference(
        id="labels_begin_with_cls",
        stage="labels",
        component="BERT's tokenizer, text_target",
        what="labels begin with [CLS], which the decoder is also started with, so it learns to say it twice; ours do not",
        since=TRANSFORMERS,
        concerns=lambda cell: _generates_pairs(cell) and cell.backbone.wrap.before == "cls_token",
        shown_by="bert_sum_sft",
    ),
    KnownDifference(
        id="prompt_counts",
        stage="labels",
        component="DataCollatorForLanguageModeling",
        what="every token is a label, the article's too; ours counts the summary alone",
        since=TRANSFORMERS,
        concerns=_separated,
        shown_by="gpt2_sum_sft",
    ),
    KnownDifference(
        id="end_is_padding",
        stage="labels",
        component="DataCollatorForLanguageModeling",
        what="padding is GPT-2's end token, as guides set it, so that no end token is a label and the model never learns to "
        "stop; ours counts it",
        since=TRANSFORMERS,
        concerns=_separated,
        shown_by="gpt2_sum_sft",
    ),
    KnownDifference(
        id="first_label_counts",
        stage="loss",
        component="Trainer with GPT-2, whose `loss_type` is None",
        what="the first token of a text counts in the mean, though nothing predicts it; ours counts what is predicted",
        since=TRANSFORMERS,
        concerns=_separated,
        shown_by="gpt2_sum_sft",
    ),
    KnownDifference(
        id="padding_answers",
        stage="loss",
        component="the models' loss of spans",
        what="padding may be the answer, so that a row's loss depends on the longest row of its batch; ours leaves padding out",
        since=TRANSFORMERS,
        concerns=_of(Problem.EXTRACT),
        shown_by="gpt2_qa_sft",
    ),
    KnownDifference(
        id="segments_lost",
        stage="loss",
        component="PEFT, PeftModelForQuestionAnswering",
        what="it takes `token_type_ids` and does not hand them on, so that BERT reads question and passage as one text",
        since="peft 0.21.2",
        concerns=lambda cell: cell.task.problem is Problem.EXTRACT and cell.backbone.segments and cell.method.adapts,
        shown_by="bert_qa_lora",
    ),
    KnownDifference(
        id="biases_by_name",
        stage="weights",
        component="Trainer, weight decay",
        what="what has `bias` in its name does not decay, T5's biases of position among it; ours lets all matrices decay",
        since=TRANSFORMERS,
        concerns=lambda cell: cell.backbone.id == "t5" and not cell.method.adapts and cell.recipe.weight_decay > 0,
        shown_by="t5_sum_sft",
    ),
    KnownDifference(
        id="batches_add_up",
        stage="accumulation",
        component="Trainer with models that take **kwargs and average by themselves",
        what="losses of accumulated batches are summed, not averaged: with four batches, gradients are four times as large",
        since=TRANSFORMERS,
        upstream="reports/upstream/transformers_accumulation.py",
        concerns=lambda cell: cell.task.problem is Problem.CLASSIFY or _generates_pairs(cell),
        shown_by="bert_sa_sft",
    ),
    KnownDifference(
        id="batches_weigh_alike",
        stage="accumulation",
        component="Trainer with models that average by themselves",
        what="accumulated batches weigh alike, a short last one as much as a full one; ours weighs rows alike",
        since=TRANSFORMERS,
        concerns=_of(Problem.EXTRACT),
        shown_by="gpt2_qa_sft",
    ),
    KnownDifference(
        id="batches_evaluated_alike",
        stage="scores",
        component="Seq2SeqTrainer.evaluate",
        what="eval_loss is a mean of the batches' means, a short last one weighs as much as a full one; ours weighs targets",
        since=TRANSFORMERS,
        concerns=_of(Problem.GENERATE),
        shown_by="t5_sum_sft",
    ),
    KnownDifference(
        id="repacked_for_evaluation",
        stage="scores",
        component="bitsandbytes, Linear4bit on a CPU with bf16 units",
        what="an evaluation repacks the weights, so that it rounds otherwise than training; ours leaves them as they are",
        since="bitsandbytes 0.50.2",
        upstream="reports/upstream/bitsandbytes_repacking.py",
        concerns=_repacks,
        shown_by="bert_sum_qlora",
    ),
    KnownDifference(
        id="grouped_predictions",
        stage="scores",
        component="Trainer.predict with train_sampling_strategy='group_by_length'",
        what="predictions come sorted by length, so that each is taken for another row's; ours come in the order of the rows",
        since=TRANSFORMERS,
        concerns=lambda cell: True,
        shown_by="bert_sa_sft",
    ),
    KnownDifference(
        id="pipeline_samples",
        stage="pipeline",
        component="pipeline('text-generation') over an adapter's folder",
        what="it draws tokens unless `do_sample=False` is said, since the folder holds no search; ours searches",
        since=TRANSFORMERS,
        concerns=lambda cell: _separated(cell) and cell.method.adapts,
        shown_by="gpt2_sum_lora",
    ),
    KnownDifference(
        id="segments_served",
        stage="pipeline",
        component="AutoModel.from_pretrained of an adapter",
        what="it hands `token_type_ids` on, so that an adapter for questions is served otherwise than it was trained",
        since="peft 0.21.2",
        concerns=lambda cell: cell.task.problem is Problem.EXTRACT and cell.backbone.segments and cell.method.adapts,
        shown_by="bert_qa_lora",
    ),
    KnownDifference(
        id="adapter_rounded_when_loaded",
        stage="pipeline",
        component="AutoModel.from_pretrained of an adapter over a packed base",
        what="the adapter's fp32 weights are rounded to bf16 as they are loaded; ours loads them as they were trained",
        since=TRANSFORMERS,
        concerns=lambda cell: cell.quantization is not None,
        shown_by="bert_sum_qlora",
    ),
    KnownDifference(
        id="no_pipeline",
        stage="pipeline",
        component="transformers.pipeline",
        what="there is none for question answering or text to text; AutoModel loads the saved folder instead",
        since=TRANSFORMERS,
        concerns=lambda cell: cell.task.problem is Problem.EXTRACT or _generates_pairs(cell),
        shown_by="t5_sum_sft",
    ),
)


def known_of(cell: Cell) -> frozenset[str]:
    """Ids of the differences that concern a cell, with the library's head."""
    return frozenset(entry.id for entry in KNOWN if entry.concerns(cell))


def table() -> list[str]:
    """The differences as lines of a Markdown table; the release links to our report of it, where there is one."""
    rows = [
        (one.stage, one.component, one.what, f"[{one.since}](../../{one.upstream})" if one.upstream else one.since)
        for one in KNOWN
    ]
    heads = ("stage", "component", "what it does, and what ours does", "since")
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What is rounding.

    Attributes:
        largest: of one difference.
        mean: of all of them, with their signs: a constant difference is none of chance, however small.
        why: where both come from.
    """

    largest: float
    mean: float
    why: str


# Losses are held as shares of themselves where they are above 1. Largest of the 27 quick cells with three seeds, on a CPU:
# 2.4e-7 for losses, 7.7e-8 for gradient norms, and 0 for rates, weights and resumed runs: both sides call the same kernels in
# the same order. A GPU was not measured.
LOSS = Tolerance(largest=2e-6, mean=1e-6, why="theirs is a mean, ours a sum that is divided: a few last digits of fp32")
GRADIENT = Tolerance(largest=2e-6, mean=2e-6, why="as the loss that it is taken of")
RATE = Tolerance(largest=1e-9, mean=1e-9, why="the same formula in doubles")
LATER = Tolerance(largest=1e-5, mean=2e-6, why="Adam's first steps are as long as the rate, so that last digits grow")
MOVED = Tolerance(largest=1e-4, mean=1e-5, why="as the losses of later updates; a tensor that hardly moves has few digits")
RESUMED = Tolerance(largest=0.0, mean=0.0, why="a resumed run repeats the same arithmetic on the same numbers")
SCORED = Tolerance(largest=2e-6, mean=2e-6, why="as the loss of an update")


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two lists of numbers lie apart: theirs less ours."""

    largest: float
    mean: float
    at: int

    def exceeds(self, tolerance: Tolerance) -> bool:
        """Whether it is more than rounding."""
        return not (self.largest <= tolerance.largest and abs(self.mean) <= tolerance.mean)


def apart(theirs: Sequence[float], ours: Sequence[float]) -> Apart:
    """The largest difference, the mean one, and where the largest stands; lists of two lengths have nothing to subtract."""
    differences = [a - b for a, b in zip(theirs, ours, strict=False)]
    if len(theirs) != len(ours) or not differences:
        return Apart(largest=float("inf"), mean=float("inf"), at=min(len(theirs), len(ours)))
    at = max(range(len(differences)), key=lambda index: _size(differences[index]))
    return Apart(largest=_size(differences[at]), mean=fmean(differences), at=at)


def _size(difference: float) -> float:
    return abs(difference) if difference == difference else float("inf")
