"""Known differences between the libraries' path and ours; a test fails when a release fixes one.

`ours.py` and `stages.py` account for each difference, so that nothing else may differ at any stage
and no tolerance has to be wider. Measured with transformers 5.24.0, tokenizers 0.23.3, peft 0.21.2
and bitsandbytes 0.50.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bitsandbytes.functional import has_avx512bf16

from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem


@dataclass(frozen=True)
class Difference:
    """A difference between the libraries' own path and tunegrid's."""

    id: str
    stage: str  # the first stage that shows it
    concerns: Callable[[Cell], bool]
    shown_by: str  # a cell that shows it, with `changes` to its recipe
    what: str  # the component, what it does, and what ours does
    upstream: str = ""  # our report of the difference
    changes: Mapping[str, Any] = field(default_factory=dict)


def cell_kind(cell: Cell) -> Problem | Layout | None:
    """The layout of source and target if the cell generates text, else the cell's problem."""
    return cell.head.layout if cell.task.problem is Problem.GENERATE else cell.task.problem


def extracts(cell: Cell) -> bool:
    return cell.task.problem is Problem.EXTRACT


def is_separated(cell: Cell) -> bool:
    return cell_kind(cell) is Layout.SEPARATED


def is_paired(cell: Cell) -> bool:
    return cell_kind(cell) is Layout.ENCODER_DECODER


def is_packed(cell: Cell) -> bool:
    return cell.quantization is not None


def adapts_segments(cell: Cell) -> bool:
    return extracts(cell) and cell.backbone.segments and cell.method.adapts


KNOWN = (
    Difference(
        "short_last_window",
        "windows",
        lambda cell: extracts(cell) and cell.recipe.doc_stride is not None,
        "bert_qa_sft",
        "tokenizers: a passage's last window begins where its turn is and may be short; "
        "ours reaches back",
    ),
    Difference(
        "no_separator",
        "windows",
        lambda cell: bool(cell.task.text_pair) and cell.backbone.wrap.after is None,
        "gpt2_qa_lora",
        "GPT-2's tokenizer: nothing stands between two texts; ours puts the end token there",
    ),
    Difference(
        "answerless_rows",
        "windows",
        extracts,
        "t5_qa_sft",
        "transformers' guide: a row whose answer is cut off trains the first token as its answer; "
        "ours leaves such a row out",
        changes={"max_length": 40},
    ),
    Difference(
        "biases_rounded_late",
        "start",
        is_packed,
        "bert_sa_qlora",
        "bitsandbytes: frozen biases are rounded by the first forward pass; "
        "ours rounds them when the model is made",
        "reports/upstream/bitsandbytes_biases.py",
    ),
    Difference(
        "labels_begin_with_cls",
        "labels",
        lambda cell: is_paired(cell) and cell.backbone.wrap.before == "cls_token",
        "bert_sum_sft",
        "BERT's tokenizer: labels begin with [CLS], which the decoder is also started with, so "
        "it learns to say it twice; ours do not",
    ),
    Difference(
        "prompt_counts",
        "labels",
        is_separated,
        "gpt2_sum_sft",
        "DataCollatorForLanguageModeling: every token is a label, the article's too; "
        "ours counts the summary alone",
    ),
    Difference(
        "end_is_padding",
        "labels",
        is_separated,
        "gpt2_sum_sft",
        "DataCollatorForLanguageModeling: padding is GPT-2's end token, as guides set it, so "
        "no end token is a label and the model never learns to stop; ours counts it",
    ),
    Difference(
        "first_label_counts",
        "loss",
        is_separated,
        "gpt2_sum_sft",
        "Trainer with GPT-2, whose `loss_type` is None: the first token of a text counts in "
        "the mean, though nothing predicts it; ours counts what is predicted",
    ),
    Difference(
        "padding_answers",
        "loss",
        extracts,
        "gpt2_qa_sft",
        "models' loss of spans: padding may be the answer, so that a row's loss depends on the "
        "longest row of its batch; ours leaves padding out",
    ),
    Difference(
        "segments_lost",
        "loss",
        adapts_segments,
        "bert_qa_lora",
        "PeftModelForQuestionAnswering: it takes `token_type_ids` and does not hand them on, "
        "so that BERT reads question and passage as one text",
    ),
    Difference(
        "biases_by_name",
        "optimizer",
        lambda cell: (
            cell.backbone.id == "t5" and not cell.method.adapts and cell.recipe.weight_decay > 0
        ),
        "t5_sum_sft",
        "Trainer: what has `bias` in its name does not decay, T5's biases of position among it; "
        "ours lets all matrices decay",
    ),
    Difference(
        "batches_add_up",
        "accumulation",
        lambda cell: cell_kind(cell) in (Problem.CLASSIFY, Layout.ENCODER_DECODER),
        "bert_sa_sft",
        "Trainer with models that take **kwargs and average by themselves: losses of "
        "accumulated batches are summed, not averaged: with four, gradients are four times as "
        "large",
        "reports/upstream/transformers_accumulation.py",
    ),
    Difference(
        "batches_weigh_alike",
        "accumulation",
        extracts,
        "gpt2_qa_sft",
        "Trainer with models that average by themselves: accumulated batches weigh alike, a "
        "short last one as much as a full one; ours weighs rows alike",
    ),
    Difference(
        "batches_evaluated_alike",
        "scores",
        lambda cell: cell.task.problem is Problem.GENERATE,
        "t5_sum_sft",
        "Seq2SeqTrainer.evaluate: eval_loss is a mean of the batches' means; ours weighs targets",
    ),
    Difference(
        "repacked_for_evaluation",
        "scores",
        lambda cell: is_packed(cell) and bool(has_avx512bf16()),
        "bert_sum_qlora",
        "bitsandbytes on a CPU with bf16 units: an evaluation repacks the weights, so that it "
        "rounds otherwise than training; ours leaves them as they are",
        "reports/upstream/bitsandbytes_repacking.py",
    ),
    Difference(
        "grouped_predictions",
        "scores",
        lambda cell: True,
        "bert_sa_sft",
        "Trainer.predict with `group_by_length`: predictions come sorted by length, each is "
        "taken for another row's; ours come in the order of the rows",
    ),
    Difference(
        "pipeline_samples",
        "pipeline",
        lambda cell: is_separated(cell) and cell.method.adapts,
        "gpt2_sum_lora",
        "pipeline: over an adapter's folder it draws tokens unless `do_sample=False` is said: "
        "the folder holds no search",
    ),
    Difference(
        "segments_served",
        "pipeline",
        adapts_segments,
        "bert_qa_lora",
        "AutoModel: it hands `token_type_ids` on, "
        "so that an adapter for questions is served otherwise than it was trained",
    ),
    Difference(
        "adapter_rounded_when_loaded",
        "pipeline",
        is_packed,
        "bert_sum_qlora",
        "AutoModel over a packed base: an adapter's fp32 weights are rounded to bf16 as they "
        "are loaded; ours loads them as they were trained",
    ),
    Difference(
        "no_pipeline",
        "pipeline",
        lambda cell: extracts(cell) or is_paired(cell),
        "t5_sum_sft",
        "pipeline: there is none for question answering or text to text; "
        "AutoModel loads the saved folder instead",
    ),
)
