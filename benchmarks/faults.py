"""Faults that really happened, as small sabotages of a quick cell. Each names the audit, or the threshold, that must catch it.

A sabotage changes one of `Parts`, what a cell is made of; the label stays. F1 to F14, F17 and F19 stood in the study's own
notebooks or reports, the others are the classics of fine-tuning.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.parts import BOUNDS, Parts, changed, healthy, run
from lib.codecs import codec_of
from lib.codecs.base import IGNORED
from lib.grid.backbones import Head
from lib.grid.cells import Cell
from lib.grid.methods import Quantization
from lib.grid.profiles import QUICK_PROFILE
from lib.results.record import Record
from lib.results.record_checks import across
from lib.results.thresholds import missed
from lib.run.metrics import Metrics
from lib.run.training import Trainer, make_schedule


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        where: the study's cells in which it happened; "generic" for a classic.
        caught_by: the audit that must object, or "threshold".
        cells: the quick cells to run; the last one is sabotaged.
        settings: recipe fields that differ from the quick ones, for the healthy twin too; such a cell is scored on fewer rows
            and held to no threshold.
        relabel: changes the records of all cells, for what only saved results can show.
    """

    id: str
    what: str
    where: str
    caught_by: str
    cells: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    sabotage: Callable[[Parts, Path], Parts] = lambda parts, folder: parts
    relabel: Callable[[list[Record]], list[Record]] = list


def objections(fault: Fault, folder: Path, *, sabotaged: bool) -> dict[str, str]:
    """What objects to the fault, or to its healthy twin: details by audit."""
    parts = [healthy(cell_id, fault.settings) for cell_id in fault.cells]
    if sabotaged:
        parts[-1] = fault.sabotage(parts[-1], folder)
    ran = [run(part) for part in parts]
    records = [record for _, record in ran]
    found = {finding.name: finding.detail for findings, _ in ran for finding in findings if not finding.passed}
    if not fault.settings:
        below = [line for record in records for line in missed(record["scores"], BOUNDS[record["cell"]])]
        found |= {"threshold": "; ".join(below)} if below else {}
    together = across(fault.relabel(records) if sabotaged else records)
    return found | {str(f["name"]): str(f["detail"]) for each in together.values() for f in each if not f["passed"]}


# Sabotages of what is built


def rebuilt(parts: Parts, **changes: Any) -> Parts:
    """The model comes from a cell other than the label's."""
    return replace(parts, built=replace(parts.built, **changes))


def with_head_spec(parts: Parts, **changes: Any) -> Parts:
    """The model comes from another description of the head."""
    spec: Head = replace(parts.cell.head, **changes)
    return rebuilt(parts, backbone=replace(parts.cell.backbone, heads={parts.cell.task.problem: spec}))


def frozen_head(parts: Parts, folder: Path) -> Parts:
    """Nobody says that the classifier is new, so it stays as it was drawn."""
    return with_head_spec(parts, new_modules=(), optional_modules=parts.cell.head.new_modules)


def unquantized(parts: Parts, folder: Path) -> Parts:
    """The quantization does not reach the model."""
    return rebuilt(parts, method=replace(parts.cell.method, quantization=None))


def fp4(parts: Parts, folder: Path) -> Parts:
    """Bitsandbytes' default type in place of NF4."""
    default = Quantization(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")
    return rebuilt(parts, method=replace(parts.cell.method, quantization=default))


def names_that_do_not_match(parts: Parts, folder: Path) -> Parts:
    """A checkpoint whose tensors have other names, and a loader that lets them start from random."""
    source = QUICK_PROFILE.checkpoint_root / parts.cell.backbone.micro  # type: ignore[operator]
    target = folder / parts.cell.backbone.micro
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    loose = with_head_spec(parts, optional_modules=("transformer",))
    return rebuilt(loose, profile=replace(parts.cell.profile, checkpoint_root=folder))


# Sabotages of text and tensors


def heads_with(change: Callable[[type[Any]], type[Any]]) -> Callable[[Parts, Path], Parts]:
    """A sabotage that derives the codec's class."""

    def sabotage(parts: Parts, folder: Path) -> Parts:
        return replace(parts, codec=lambda cell, tokenizer: change(type(codec_of(cell, tokenizer)))(cell, tokenizer))

    return sabotage


def labels_are_the_input(codec: type[Any]) -> type[Any]:
    """A collator for language models writes its own labels: every token, the article's too."""

    class Overwritten(codec):  # type: ignore[misc]
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    return Overwritten


def padding_counts(codec: type[Any]) -> type[Any]:
    """Labels are padded with the padding token, which the loss then counts."""

    class Padded(codec):  # type: ignore[misc]
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == IGNORED, self.pad_id)}

    return Padded


def separator_cut_off(codec: type[Any]) -> type[Any]:
    """At inference the prompt is cut behind the article, and <sum> with it."""

    class Cut(codec):  # type: ignore[misc]
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return features if training else [replace(f, input_ids=f.input_ids[:-1]) for f in features]

    return Cut


def windows_taken_for_rows(codec: type[Any]) -> type[Any]:
    """Window i answers row i, though some rows have several windows."""

    class Shifted(codec):  # type: ignore[misc]
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return features if training else [replace(f, example=min(i, len(rows) - 1)) for i, f in enumerate(features)]

    return Shifted


def first_occurrence(codec: type[Any]) -> type[Any]:
    """The answer is labelled where its text first occurs."""

    class First(codec):  # type: ignore[misc]
        def encode(self, rows: Any, *, training: bool) -> Any:
            return super().encode([moved(row) for row in rows] if training else rows, training=training)

    def moved(row: Any) -> Any:
        texts = row["answers"]["text"]
        return row | {"answers": {"text": texts, "answer_start": [row["context"].find(text) for text in texts]}}

    return First


def cut_summaries(parts: Parts, folder: Path) -> Parts:
    """Generation stops at a default number of tokens, in the middle of the summary."""

    def short(cell: Cell, tokenizer: Any) -> Any:
        codec = codec_of(cell, tokenizer)
        codec.recipe = replace(codec.recipe, generation=replace(codec.recipe.generation, max_new_tokens=7))
        return codec

    return replace(parts, codec=short)


# Sabotages of rows


def chosen_on_test(parts: Parts, folder: Path) -> Parts:
    """The epoch is chosen on the rows it is then scored on."""
    return replace(parts, selected_on="test")


def shuffled_labels(parts: Parts, folder: Path) -> Parts:
    """Labels are dealt out again among the training rows."""
    labels = [row["label"] for row in parts.splits.train]
    Random(0).shuffle(labels)
    rows = [row | {"label": label} for row, label in zip(parts.splits.train, labels, strict=True)]
    return replace(parts, splits=replace(parts.splits, train=rows))


def tested_rows_trained_on(parts: Parts, folder: Path) -> Parts:
    """Some test rows stand in train."""
    return replace(parts, splits=replace(parts.splits, train=[*parts.splits.train, *parts.splits.test[:5]]))


def fewer_rows(parts: Parts, folder: Path) -> Parts:
    """One method of the triple trains on fewer rows."""
    return replace(parts, splits=replace(parts.splits, train=parts.splits.train[:500]))


# Sabotages of training and scoring


class Summed(Trainer):
    """Each micro-batch's mean counts in full, so that the update's loss is their sum."""

    def divisors(self, batches: Any) -> list[int]:
        """Its own targets only."""
        return [self.codec.targets(batch) for batch in batches]


class Stretched(Trainer):
    """The schedule is made for as many steps as there are micro-batches."""

    def __init__(self, *parts: Any) -> None:
        """Replace the schedule."""
        super().__init__(*parts)
        steps = self.total * self.cell.recipe.gradient_accumulation_steps
        self.schedule = make_schedule(self.optimizer.optimizer, self.cell, steps)


class Impossible:
    """A metric in which more answers match exactly than match at all."""

    def compute(self, **_: Any) -> dict[str, float]:
        """Points as `evaluate` gives them."""
        return {"exact_match": 62.6, "f1": 62.1}


def still(parts: Parts, folder: Path) -> Parts:
    """A learning rate that is some orders of magnitude too low, in the recipe itself."""
    return changed(parts, learning_rate=1e-8)


def copied_row(records: list[Record]) -> list[Record]:
    """The first cell's results stand in the second cell's row too."""
    first, second = records
    return [first, second | {name: first[name] for name in ("scores", "training", "evaluation")}]


def pair(backbone_task: str) -> tuple[str, str]:
    """Two methods of one backbone and task."""
    return f"{backbone_task}_sft", f"{backbone_task}_lora"


FEW = {"max_steps": 30}
FAULTS: Iterable[Fault] = (
    Fault(
        id="F1",
        what="the new head stays frozen at its random start",
        where="gpt2_sa, gpt2_qa (lora, qlora), bert_qa_lora",
        caught_by="heads_trainable",
        cells=("gpt2_sa_lora",),
        sabotage=frozen_head,
    ),
    Fault(
        id="F2",
        what="QLoRA on a base that was never quantized",
        where="bert_sum_qlora",
        caught_by="quantized_as_declared",
        cells=("bert_sum_qlora",),
        settings=FEW,
        sabotage=unquantized,
    ),
    Fault(
        id="F3",
        what="FP4, the library's default, in place of NF4",
        where="gpt2_sum_qlora, t5_sa_qlora",
        caught_by="quantized_as_declared",
        cells=("gpt2_sum_qlora",),
        settings=FEW,
        sabotage=fp4,
    ),
    Fault(
        id="F4",
        what="labels overwritten: the loss is on the article",
        where="gpt2_sum_lora, gpt2_sum_qlora",
        caught_by="labels_are_targets",
        cells=("gpt2_sum_lora",),
        settings=FEW,
        sabotage=heads_with(labels_are_the_input),
    ),
    Fault(
        id="F5",
        what="every summary cut at a default length",
        where="t5_sum x3",
        caught_by="generation_not_truncated",
        cells=("t5_sum_lora",),
        sabotage=cut_summaries,
    ),
    Fault(
        id="F6",
        what="separator cut off at inference",
        where="gpt2_sum_sft",
        caught_by="prompt_intact_at_inference",
        cells=("gpt2_sum_sft",),
        settings=FEW,
        sabotage=heads_with(separator_cut_off),
    ),
    Fault(
        id="F7",
        what="windows scored against another row",
        where="bert_qa x3",
        caught_by="windows_map_to_examples",
        cells=("bert_qa_sft",),
        settings={"max_steps": 60},
        sabotage=heads_with(windows_taken_for_rows),
    ),
    Fault(
        id="F8",
        what="answers labelled at their first occurrence",
        where="gpt2_qa, t5_qa",
        caught_by="answers_at_annotated_start",
        cells=("gpt2_qa_lora",),
        settings=FEW,
        sabotage=heads_with(first_occurrence),
    ),
    Fault(
        id="F9",
        what="epoch chosen on the rows it is scored on",
        where="gpt2_sa, gpt2_qa_sft, t5_sa, t5_qa",
        caught_by="selection_apart_from_test",
        cells=("gpt2_sa_sft",),
        settings={"num_train_epochs": 2},
        sabotage=chosen_on_test,
    ),
    Fault(
        id="F10",
        what="micro-batch losses summed, not averaged",
        where="gpt2_sa, gpt2_qa (lora, qlora)",
        caught_by="loss_is_mean_over_accumulation",
        cells=("gpt2_sa_lora",),
        sabotage=lambda parts, folder: replace(parts, trainer=Summed),
    ),
    Fault(
        id="F11",
        what="schedule sized in micro-batches",
        where="t5_qa_qlora",
        caught_by="schedule_counts_updates",
        cells=("gpt2_sa_qlora",),
        sabotage=lambda parts, folder: replace(parts, trainer=Stretched),
    ),
    Fault(
        id="F12",
        what="methods of one triple on different rows",
        where="bert_sum, gpt2_qa, gpt2_sum",
        caught_by="same_rows_in_triple",
        cells=pair("gpt2_sa"),
        sabotage=fewer_rows,
    ),
    Fault(
        id="F13",
        what="impossible numbers, such as EM above F1",
        where="bert_qa, bert_sum",
        caught_by="metric_invariants",
        cells=("gpt2_qa_lora",),
        settings=FEW,
        sabotage=lambda parts, folder: replace(parts, metrics=Metrics(loaded={"squad": Impossible()})),
    ),
    Fault(
        id="F14",
        what="two cells with identical results: a copied row",
        where="bert_qa_lora = bert_qa_sft, t5_sum_lora = t5_sum_sft",
        caught_by="distinct_results",
        cells=pair("gpt2_sa"),
        relabel=copied_row,
    ),
    Fault(
        id="F15",
        what="learning rate far off: training that never moves",
        where="generic",
        caught_by="threshold",
        cells=("gpt2_sa_lora",),
        sabotage=still,
    ),
    Fault(
        id="F16",
        what="training labels shuffled against inputs",
        where="generic",
        caught_by="learned_something",
        cells=("gpt2_sa_lora",),
        sabotage=shuffled_labels,
    ),
    Fault(
        id="F17",
        what="padding counted in the loss",
        where="generic",
        caught_by="labels_are_targets",
        cells=("t5_sum_sft",),
        sabotage=heads_with(padding_counts),
    ),
    Fault(
        id="F18",
        what="test rows in train",
        where="generic",
        caught_by="no_leakage",
        cells=("gpt2_sa_lora",),
        sabotage=tested_rows_trained_on,
    ),
    Fault(
        id="F19",
        what="the checkpoint's weights silently not loaded",
        where="generic",
        caught_by="checkpoint_loaded",
        cells=("gpt2_sa_lora",),
        sabotage=names_that_do_not_match,
    ),
)
