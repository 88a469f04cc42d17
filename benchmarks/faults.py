"""The fault table: faults that really happened. Each names the audit, or the threshold, that must catch it.

A fault breaks one noun of the pipeline (`sabotages.py` and `course_sabotages.py` say how); the cell's label stays. Faults over
several cells break saved records. F1 to F14, F17 and F19 stood in the study's own notebooks or reports, the others are the
classics of fine-tuning; F20 and later happen in a line of a model, a collator or a loop, and hardly a score tells them; from
F43 on they happen after scoring, where a result is saved; from F54 on in the libraries' own code, where nothing of ours stands.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import course_sabotages as course
from benchmarks import method_sabotages as methods
from benchmarks import sabotages as sabotage
from benchmarks.library_patches import adapters, generation, updates


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of one cell.

    Attributes:
        where: the study's cells in which it happened, or the library that does it; "generic" for a classic.
        caught_by: the audit that must object, "threshold", or the stage of a run that numerics must name, against the committed
            baseline.
        cell: the cell to run; `profile` says of which grid it is.
        settings: recipe fields that differ from the quick ones, for the healthy twin too; such a cell is scored on fewer rows
            and held to no threshold.
        ranks: processes that share the cell.
        breaks: the fixture whose value the sabotage replaces.
        sabotage: makes the broken value of the sound one, and of a folder for its files; "libraries" are broken by way of
            pytest's monkeypatch.
    """

    id: str
    what: str
    where: str = "generic"
    caught_by: str
    cell: str
    profile: str = "quick"
    settings: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1
    breaks: str
    sabotage: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class RecordFault:
    """One fault that only several records together show: `sabotage` changes the records of `cells`."""

    id: str
    what: str
    where: str
    caught_by: str
    cells: tuple[str, str]
    sabotage: Callable[..., Any]


def planted(patch: Callable[[Any], None]) -> Callable[[Any, Path], None]:
    """A patch of a library as a sabotage."""
    return lambda monkeypatch, folder: patch(monkeypatch)


FEW = {"max_steps": 30}
SHORT = {"max_steps": 12}  # of a cell of the zoo

FAULTS = (
    Fault(
        id="F1",
        what="the new head stays frozen at its random start",
        where="gpt2_sa, gpt2_qa (lora, qlora), bert_qa_lora",
        caught_by="heads_trainable",
        cell="gpt2_sa_lora",
        breaks="built_cell",
        sabotage=sabotage.frozen_head,
    ),
    Fault(
        id="F2",
        what="QLoRA on a base that was never quantized",
        where="bert_sum_qlora",
        caught_by="quantized_as_declared",
        cell="bert_sum_qlora",
        settings=FEW,
        breaks="built_cell",
        sabotage=sabotage.unquantized,
    ),
    Fault(
        id="F3",
        what="FP4, the library's default, in place of NF4",
        where="gpt2_sum_qlora, t5_sa_qlora",
        caught_by="quantized_as_declared",
        cell="gpt2_sum_qlora",
        settings=FEW,
        breaks="built_cell",
        sabotage=sabotage.fp4,
    ),
    Fault(
        id="F4",
        what="labels overwritten: the loss is on the article",
        where="gpt2_sum_lora, gpt2_sum_qlora",
        caught_by="labels_are_targets",
        cell="gpt2_sum_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.labels_are_the_input,
    ),
    Fault(
        id="F5",
        what="every summary cut at a default length",
        where="t5_sum x3",
        caught_by="generation_not_truncated",
        cell="t5_sum_lora",
        breaks="codec",
        sabotage=sabotage.cut_summaries,
    ),
    Fault(
        id="F6",
        what="separator cut off at inference",
        where="gpt2_sum_sft",
        caught_by="prompt_intact_at_inference",
        cell="gpt2_sum_sft",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.separator_cut_off,
    ),
    Fault(
        id="F7",
        what="windows scored against another row",
        where="bert_qa x3",
        caught_by="windows_map_to_examples",
        cell="bert_qa_sft",
        settings={"max_steps": 60},
        breaks="codec",
        sabotage=sabotage.windows_taken_for_rows,
    ),
    Fault(
        id="F8",
        what="answers labelled at their first occurrence",
        where="gpt2_qa, t5_qa",
        caught_by="answers_at_annotated_start",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.first_occurrence,
    ),
    Fault(
        id="F9",
        what="epoch chosen on the rows it is scored on",
        where="gpt2_sa, gpt2_qa_sft, t5_sa, t5_qa",
        caught_by="selection_apart_from_test",
        cell="gpt2_sa_sft",
        settings={"num_train_epochs": 2},
        breaks="validation_rows",
        sabotage=course.chosen_on_test,
    ),
    Fault(
        id="F10",
        what="micro-batch losses summed, not averaged",
        where="gpt2_sa, gpt2_qa (lora, qlora)",
        caught_by="loss_is_mean_over_accumulation",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="trainer",
        sabotage=course.summed,
    ),
    Fault(
        id="F11",
        what="schedule sized in micro-batches",
        where="t5_qa_qlora",
        caught_by="schedule_counts_updates",
        cell="gpt2_sa_qlora",
        breaks="trainer",
        sabotage=course.stretched,
    ),
    RecordFault(
        id="F12",
        what="methods of one triple on different rows",
        where="bert_sum, gpt2_qa, gpt2_sum",
        caught_by="same_rows_in_triple",
        cells=("gpt2_sa_sft", "gpt2_sa_lora"),
        sabotage=course.fewer_rows,
    ),
    Fault(
        id="F13",
        what="impossible numbers, such as EM above F1",
        where="bert_qa, bert_sum",
        caught_by="metric_invariants",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="metrics",
        sabotage=course.impossible_numbers,
    ),
    RecordFault(
        id="F14",
        what="two cells with identical results: a copied row",
        where="bert_qa_lora = bert_qa_sft, t5_sum_lora = t5_sum_sft",
        caught_by="distinct_results",
        cells=("gpt2_sa_sft", "gpt2_sa_lora"),
        sabotage=course.copied_row,
    ),
    Fault(
        id="F15",
        what="learning rate far off: training that never moves",
        caught_by="threshold",
        cell="gpt2_sa_lora",
        breaks="cell",
        sabotage=sabotage.still,
    ),
    Fault(
        id="F16",
        what="training labels shuffled against inputs",
        caught_by="learned_something",
        cell="gpt2_sa_lora",
        breaks="splits",
        sabotage=course.shuffled_labels,
    ),
    Fault(
        id="F17",
        what="padding counted in the loss",
        caught_by="labels_are_targets",
        cell="t5_sum_sft",
        breaks="codec",
        sabotage=sabotage.padding_counts,
    ),
    Fault(
        id="F18",
        what="test rows in train",
        caught_by="no_leakage",
        cell="gpt2_sa_lora",
        breaks="splits",
        sabotage=course.tested_rows_trained_on,
    ),
    Fault(
        id="F19",
        what="the checkpoint's weights silently not loaded",
        caught_by="checkpoint_loaded",
        cell="gpt2_sa_lora",
        breaks="built_cell",
        sabotage=sabotage.names_that_do_not_match,
    ),
    Fault(
        id="F20",
        what="padding taken for text: no attention mask",
        caught_by="rows_alone_as_in_batch",
        cell="t5_sum_lora",
        breaks="codec",
        sabotage=sabotage.padding_attended,
    ),
    Fault(
        id="F21",
        what="dropout still at work in evaluation",
        caught_by="predicting_twice_is_the_same",
        cell="t5_sum_lora",
        breaks="model",
        sabotage=sabotage.never_in_evaluation,
    ),
    Fault(
        id="F22",
        what="positions counted anew behind a cache",
        caught_by="cache_changes_nothing",
        cell="gpt2_sum_lora",
        settings=FEW,
        breaks="model",
        sabotage=sabotage.positions_from_zero,
    ),
    Fault(
        id="F23",
        what="the adapter's scale applied twice",
        caught_by="adapters_add_as_declared",
        cell="gpt2_sa_lora",
        breaks="model",
        sabotage=sabotage.scaled_twice,
    ),
    Fault(
        id="F24",
        what="adapters that skip their dropout",
        caught_by="dropout_drops",
        cell="gpt2_sa_lora",
        breaks="model",
        sabotage=sabotage.dropout_skipped,
    ),
    Fault(
        id="F25",
        what="biases of position cut off from the gradient",
        caught_by="gradients_reach",
        cell="t5_sum_sft",
        breaks="model",
        sabotage=sabotage.detached_positions,
    ),
    Fault(
        id="F26",
        what="gradients clipped at another bound",
        caught_by="gradients_clipped",
        cell="gpt2_sa_lora",
        breaks="trainer",
        sabotage=course.hardly_clipped,
    ),
    Fault(
        id="F27",
        what="biases and norms left out of the schedule",
        caught_by="schedule_counts_updates",
        cell="t5_sum_sft",
        breaks="trainer",
        sabotage=course.one_group_scheduled,
    ),
    Fault(
        id="F28",
        what="adapters trained in bf16",
        caught_by="trains_in_fp32",
        cell="t5_sum_lora",
        breaks="model",
        sabotage=sabotage.adapters_in_bf16,
    ),
    Fault(
        id="F29",
        what="the decoder reads the token it should predict",
        caught_by="decoder_sees_no_future",
        cell="t5_sum_lora",
        breaks="codec",
        sabotage=sabotage.unshifted,
    ),
    Fault(
        id="F30",
        what="a base packed from one that was packed before",
        caught_by="packed_from_checkpoint",
        cell="gpt2_sum_qlora",
        settings=FEW,
        breaks="model",
        sabotage=sabotage.packed_twice,
    ),
    Fault(
        id="F31",
        what="NF4 in blocks of 128",
        caught_by="quantized_as_declared",
        cell="gpt2_sum_qlora",
        settings=FEW,
        breaks="model",
        sabotage=sabotage.large_blocks,
    ),
    Fault(
        id="F32",
        what="characters of first tokens one late",
        caught_by="offsets_show_their_tokens",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.late_offsets,
    ),
    Fault(
        id="F33",
        what="a checkpoint's own repetition penalty",
        caught_by="texts_are_the_models",
        cell="gpt2_sum_sft",
        breaks="codec",
        sabotage=sabotage.repetition_punished,
    ),
    Fault(
        id="F34",
        what="training that ends after a quarter of its updates",
        caught_by="schedule_counts_updates",
        cell="gpt2_sa_lora",
        breaks="trainer",
        sabotage=course.cut_short,
    ),
    Fault(
        id="F35",
        what="gradients cleared between micro-batches",
        caught_by="loss_is_mean_over_accumulation",
        cell="t5_sum_lora",
        breaks="trainer",
        sabotage=course.zeroed_between,
    ),
    Fault(
        id="F36",
        what="two layers of the checkpoint trade places",
        caught_by="checkpoint_loaded",
        cell="gpt2_sa_lora",
        breaks="built_cell",
        sabotage=sabotage.layers_swapped,
    ),
    Fault(
        id="F37",
        what="the same two layers, packed to NF4",
        caught_by="packed_from_checkpoint",
        cell="gpt2_sum_qlora",
        settings=FEW,
        breaks="built_cell",
        sabotage=sabotage.layers_swapped,
    ),
    Fault(
        id="F38",
        what="one answer in three labelled as in no window",
        caught_by="answers_at_annotated_start",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.answers_unlabelled,
    ),
    Fault(
        id="F39",
        what="a collator that labels no window with its answer",
        caught_by="labels_are_targets",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.spans_collated_away,
    ),
    Fault(
        id="F40",
        what="answers cut out of another place of their context",
        caught_by="windows_map_to_examples",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="codec",
        sabotage=sabotage.answers_from_elsewhere,
    ),
    Fault(
        id="F41",
        what="each row with the points of the row before it",
        caught_by="metric_invariants",
        cell="gpt2_qa_lora",
        settings=FEW,
        breaks="score",
        sabotage=course.points_of_neighbours,
    ),
    RecordFault(
        id="F42",
        what="copied scores beside the cell's own losses",
        where="generic",
        caught_by="distinct_results",
        cells=("gpt2_sum_sft", "gpt2_sum_lora"),
        sabotage=course.copied_scores,
    ),
    Fault(
        id="F43",
        what="a new head that is not saved with its adapter",
        caught_by="saved_is_served",
        cell="gpt2_sa_lora",
        breaks="serving",
        sabotage=course.head_not_saved,
    ),
    Fault(
        id="F44",
        what="an adapter merged into its base twice",
        caught_by="saved_is_served",
        cell="gpt2_sa_lora",
        breaks="serving",
        sabotage=course.merged_twice,
    ),
    Fault(
        id="F45",
        what="a new token's trained row that is not saved",
        caught_by="saved_is_served",
        cell="gpt2_sum_lora",
        settings=FEW,
        breaks="serving",
        sabotage=course.token_row_not_saved,
    ),
    Fault(
        id="F46",
        what="KaSA over NF4, which trains as plain LoRA",
        where="peft 0.21.2",
        caught_by="variant_applied",
        cell="gpt2_sa_qlora",
        profile="zoo",
        settings=SHORT,
        breaks="cell",
        sabotage=methods.kasa_over_nf4,
    ),
    Fault(
        id="F47",
        what="MonteCLoRA over NF4, which trains as plain LoRA",
        where="peft 0.21.2",
        caught_by="variant_applied",
        cell="gpt2_sa_qlora",
        profile="zoo",
        settings=SHORT,
        breaks="cell",
        sabotage=methods.monteclora_over_nf4,
    ),
    Fault(
        id="F48",
        what="OSF on GPT-2, of which it trains nothing",
        where="peft 0.21.2",
        caught_by="adapters_where_declared",
        cell="gpt2_sa_lora",
        profile="zoo",
        settings=SHORT,
        breaks="cell",
        sabotage=methods.osf_on_conv1d,
    ),
    Fault(
        id="F49",
        what="trainable tokens, which leave the new head frozen",
        where="peft 0.21.2",
        caught_by="heads_trainable",
        cell="bert_sa_lora",
        profile="zoo",
        settings=SHORT,
        breaks="cell",
        sabotage=methods.token_rows_alone,
    ),
    Fault(
        id="F50",
        what="an adapter drawn before the seed is set",
        caught_by="drawn_from_the_seed",
        cell="gpt2_sa_lora",
        profile="zoo",
        settings=SHORT,
        breaks="model",
        sabotage=methods.drawn_before_the_seed,
    ),
    Fault(
        id="F51",
        what="AdaLoRA's penalty inside the loss that is reported",
        where="peft 0.21.2",
        caught_by="loss_is_the_tasks",
        cell="gpt2_sa_adalora",
        profile="zoo",
        settings=SHORT,
        breaks="codec",
        sabotage=methods.penalty_in_the_loss,
    ),
    Fault(
        id="F52",
        what="PiSSA's rewritten base under the label of LoRA",
        caught_by="checkpoint_loaded",
        cell="gpt2_sa_lora",
        profile="zoo",
        settings=SHORT,
        breaks="built_cell",
        sabotage=methods.rewritten_base,
    ),
    Fault(
        id="F53",
        what="a mean on each rank in place of one over all targets",
        caught_by="ranks_train_as_one",
        cell="t5_sum_lora",
        settings=SHORT,
        ranks=2,
        breaks="trainer",
        sabotage=course.mean_of_each_rank,
    ),
    Fault(
        id="F54",
        what="torch's `bernoulli_` on a CPU, which drops nothing",
        caught_by="dropout_drops",
        cell="gpt2_sa_lora",
        breaks="libraries",
        sabotage=planted(updates.nothing_is_dropped),
    ),
    Fault(
        id="F55",
        what="a cache that does not follow its beams",
        where="transformers#46612, #46639",
        caught_by="cache_changes_nothing",
        cell="gpt2_sum_sft",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.beams_keep_their_cache),
    ),
    Fault(
        id="F56",
        what="layers of a cache that do not follow its beams",
        caught_by="cache_changes_nothing",
        cell="t5_sum_sft",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.beams_keep_their_layers),
    ),
    Fault(
        id="F57",
        what="attention scaled otherwise in decoding",
        caught_by="cache_changes_nothing",
        cell="gpt2_sum_lora",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.one_token_is_scaled),
    ),
    Fault(
        id="F58",
        what="the same, from the eleventh token on",
        caught_by="cache_changes_nothing",
        cell="gpt2_sum_sft",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.late_tokens_are_scaled),
    ),
    Fault(
        id="F59",
        what="a cache that writes a token over the one before",
        caught_by="cache_changes_nothing",
        cell="t5_sum_lora",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.tokens_overwrite_the_last),
    ),
    Fault(
        id="F60",
        what="a beam that goes on from another one's tokens",
        caught_by="cache_changes_nothing",
        cell="gpt2_sum_sft",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(generation.beams_take_anothers_past),
    ),
    Fault(
        id="F61",
        what="a trained token that the output layer does not follow",
        caught_by="output_follows_trained_tokens",
        cell="gpt2_sum_qlora",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(adapters.output_forgets_its_token),
    ),
    Fault(
        id="F62",
        what="a new token's row that gets no gradient",
        caught_by="gradients_reach",
        cell="gpt2_sum_lora",
        settings=FEW,
        breaks="libraries",
        sabotage=planted(adapters.token_rows_without_gradient),
    ),
    Fault(
        id="F63",
        what="half of the gradient through 4-bit layers",
        caught_by="backward without dropout",
        cell="gpt2_sa_qlora",
        breaks="libraries",
        sabotage=planted(updates.packed_layers_pass_half_the_gradient),
    ),
)
CELL_FAULTS = tuple(fault for fault in FAULTS if isinstance(fault, Fault))
RECORD_FAULTS = tuple(fault for fault in FAULTS if isinstance(fault, RecordFault))
