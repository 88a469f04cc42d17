"""What must be equal: one row says which two settings, on which cells, in which fields, how nearly and why.

`plant` is a small change of what is installed that must break the row: a row whose plant passes is a failing test.
`benchmarks/equivalent` holds the settings, the plants and the oracles; `benchmarks/test_equivalent.py` runs the table. What an
installed library does not hold is a row of `KNOWN`, with what was measured; a test fails when a release mends it.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.distributed.fsdp import FSDPModule

from benchmarks.equivalent import (
    answers,
    loaded,
    merged,
    options,
    plants_answers,
    plants_loaded,
    plants_quantized,
    plants_saved,
    plants_training,
    processes,
    quantized,
    saved,
    training,
)
from benchmarks.equivalent.bench import Plant, Setting
from benchmarks.equivalent.compare import OTHER, SAME_BITS, Tolerance, of_whole, within
from benchmarks.library_patches import attention, generation, updates
from tunegrid.run.ranks import Ranks
from tunegrid.run.sharded import Sharded


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two settings that should be equal.

    Attributes:
        cells: where.
        equal: how nearly, by field.
        ranks: how many processes run it together.
        missing: says what this machine lacks for it; None where it lacks nothing.
    """

    id: str
    cells: tuple[str, ...]
    one: Setting
    other: Setting
    equal: Mapping[str, Tolerance]
    ranks: int = 1
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Row(Pair):
    """Two settings that are equal.

    Attributes:
        why: the reason for these tolerances.
        plant: what must break the row; it is tried on the first cell.
    """

    why: str
    plant: Plant


@dataclass(frozen=True, kw_only=True)
class Known(Pair):
    """Two settings that an installed library does not keep equal.

    Attributes:
        library: whose they are.
        what: what differs, as measured here.
        source: where it was reported, as far as we found.
        refused: words of the error with which the library refuses the second setting; empty where it goes on, and differs.
    """

    library: str
    what: str
    source: str = ""
    refused: str = ""


def no_compiler() -> str | None:
    """Inductor compiles kernels for a CPU with a C++ compiler."""
    return None if shutil.which("g++") or shutil.which("clang++") else "torch.compile needs a C++ compiler, and there is none"


def no_fsdp2() -> str | None:
    """As `tunegrid.run.sharded` uses it."""
    known = hasattr(FSDPModule, "set_force_sum_reduction_for_comms")
    return None if known else f"torch {torch.__version__} cannot sum gradients under FSDP2; 2.8 can"


# fp32 has 24 bits: one rounding is 6e-8. Sums of some hundred products in another order come out 1e-7 to 2e-6 apart.
ROUNDING = within(2e-5)
# AdamW divides a gradient by its own size: where that is next to zero, rounding turns the direction of a whole step.
STEPPED = of_whole(2e-2)
DIFFERENTIATED = of_whole(2e-5)
TRAINED = {"losses": ROUNDING, "norms": within(1e-4), "moves": STEPPED}
EXACTLY_TRAINED = dict.fromkeys(("losses", "norms", "rates", "moves"), SAME_BITS)
NF4_EXACTLY = {"codes": SAME_BITS, "scales": SAME_BITS, "scales of scales": within(1e-6), "mean scale": within(1e-6)}
READ = {"logits": ROUNDING, "gradients": DIFFERENTIATED}

# Every method of the zoo that has an adapter, on a cell that every one of its kind can train.
METHODS_OF_ADAPTERS = (
    *("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_dora", "gpt2_sa_pissa", "gpt2_sa_loraplus", "gpt2_sa_lorafa"),
    *("gpt2_sa_adalora", "gpt2_sa_ia3", "gpt2_sa_vera", "bert_sa_oft", "gpt2_sa_ln"),
)
OVER_NF4 = ("gpt2_sa_qlora", "gpt2_sa_qdora", "bert_sa_qoft", "gpt2_sa_qia3")

TRAINING = (
    Row(
        id="accumulation",
        cells=("gpt2_sum_lora", "t5_sum_sft", "bert_qa_sft", "bert_sa_lora"),
        one=training.trained(dropout=False, per_device_train_batch_size=4),
        other=training.trained(dropout=False, per_device_train_batch_size=1, gradient_accumulation_steps=4),
        equal=TRAINED,
        why="the same sums in another order; the last update has two rows of four, and texts differ in length",
        plant=plants_training.each_micro_batch_by_its_own_targets,
    ),
    Row(
        id="gradient-checkpointing",
        cells=("gpt2_sum_lora", "bert_sa_sft", "gpt2_sa_qlora", "t5_sa_lora", "bert_sum_lora"),
        one=training.trained(gradient_checkpointing=False),
        other=training.trained(gradient_checkpointing=True),
        equal=EXACTLY_TRAINED,
        why="the backward pass repeats the same operations on the same numbers, dropout's included",
        plant=plants_training.activations_drop_anew,
    ),
    Row(
        id="gradient-checkpointing-of-t5",
        cells=("t5_sum_lora", "t5_sum_sft"),
        one=training.trained(gradient_checkpointing=False),
        other=training.trained(gradient_checkpointing=True),
        equal=TRAINED,
        why="the bias of T5's cross-attention then asks for a gradient, for which SDPA takes another kernel",
        plant=plants_training.activations_drop_anew,
    ),
)

READING = (
    Row(
        id="padded-encoder",
        cells=("bert_sa_sft", "bert_qa_lora", "t5_sa_sft", "t5_qa_lora", "t5_sum_lora", "bert_sum_sft"),
        one=answers.read_alone(),
        other=answers.read_together(),
        equal=READ,
        why="masked tokens have weight 0; kernels sum rows of another width in another order",
        plant=plants_answers.mask_is_lost,
    ),
    Row(
        id="padded-classifier",
        cells=("gpt2_sa_sft", "gpt2_qa_sft"),
        one=answers.read_alone(),
        other=answers.read_together(),
        equal=READ,
        why="a causal model never sees what stands behind a token",
        plant=attention.last_column_is_classified,
    ),
    Row(
        id="padded-in-front",
        cells=("gpt2_sum_sft", "gpt2_qa_lora", "gpt2_sa_sft", "bert_qa_sft"),
        one=answers.read_alone(),
        other=answers.read_together(side="left", positions=True),
        equal=READ,
        why="as padded behind, where positions count from the first real token",
        plant=plants_answers.positions_are_counted_from_the_left,
    ),
    Row(
        id="padded-in-front-relative",
        cells=("t5_sum_sft", "t5_sa_lora"),
        one=answers.read_alone(),
        other=answers.read_together(side="left"),
        equal=READ,
        why="T5 knows distances only, so that it need not be told where a row begins",
        plant=plants_answers.first_mask_for_all,
    ),
    Row(
        id="another-order",
        cells=("t5_sum_sft", "bert_qa_lora", "gpt2_sum_sft", "gpt2_sa_qlora"),
        one=answers.read_together(),
        other=answers.read_backwards(),
        equal={"logits": ROUNDING, "gradients": DIFFERENTIATED},
        why="rows of a batch do not know of each other; gradients are summed in another order",
        plant=plants_answers.first_mask_for_all,
    ),
    Row(
        id="packed",
        cells=("gpt2_sum_sft", "gpt2_sum_lora"),
        one=answers.one_by_one(),
        other=answers.packed(use_cache=False),
        equal={"logits": ROUNDING},
        why="positions that start anew part the rows; a wider attention sums zeros, too",
        plant=plants_answers.packed_rows_see_each_other,
    ),
    Row(
        id="scores-in-another-order",
        cells=("bert_sa_sft", "gpt2_qa_lora"),
        one=answers.scored(),
        other=answers.scored(backwards=True),
        equal={"predictions": SAME_BITS, "points of rows": SAME_BITS, "scores": within(1e-12)},
        why="which rows share a batch does not change a prediction; a mean of points is summed in another order",
        plant=plants_answers.answers_come_as_they_were_read,
    ),
)

SEARCHING = (
    Row(
        id="cache",
        cells=("gpt2_sum_sft", "t5_sum_sft", "bert_sum_lora", "t5_sum_qlora"),
        one=answers.generated(use_cache=True),
        other=answers.generated(use_cache=False),
        equal={"token ids": SAME_BITS},
        why="the best tokens are apart by far more than rounding",
        plant=generation.tokens_overwrite_the_last,
    ),
    Row(
        id="static-cache",
        cells=("gpt2_sum_sft", "t5_sum_sft", "gpt2_sum_lora"),
        one=answers.generated(num_beams=1),
        other=answers.generated(num_beams=1, cache_implementation="static", disable_compile=True),
        equal={"token ids": SAME_BITS},
        why="places that hold nothing yet are masked",
        plant=plants_answers.static_cache_overwrites_its_last,
    ),
    Row(
        id="beams-of-a-batch",
        cells=("t5_sum_sft", "gpt2_sum_lora", "bert_sum_sft"),
        one=answers.generated(at_once=False),
        other=answers.generated(at_once=True),
        equal={"token ids": SAME_BITS},
        why="each row keeps beams, cache and padding of its own",
        plant=plants_answers.beams_follow_the_first_row,
    ),
    Row(
        id="search-through-eager-attention",
        cells=("gpt2_sum_sft", "t5_sum_sft"),
        one=answers.generated(attention="eager"),
        other=answers.generated(attention="sdpa"),
        equal={"token ids": SAME_BITS},
        why="the best tokens are apart by far more than rounding",
        plant=generation.one_token_is_scaled,
    ),
)

ARITHMETIC = (
    Row(
        id="eager-attention",
        cells=("bert_qa_sft", "gpt2_sum_lora", "t5_sum_sft", "bert_sum_sft"),
        one=training.differentiated(attention="sdpa"),
        other=training.differentiated(attention="eager"),
        equal={"loss": ROUNDING, "gradients": DIFFERENTIATED},
        why="one softmax, fused or not",
        plant=plants_answers.sdpa_computes_in_bf16,
    ),
    Row(
        id="eager-attention-bias",
        cells=("t5_sum_sft", "t5_sa_sft"),
        one=training.differentiated(attention="sdpa"),
        other=training.differentiated(attention="eager"),
        equal={"loss": ROUNDING, "gradients": DIFFERENTIATED},
        why="T5 learns its relative bias through the mask that SDPA is given",
        plant=attention.bias_without_gradient,
    ),
    Row(
        id="compiled",
        cells=("bert_sa_sft",),
        one=training.differentiated(rows=4),
        other=training.compiled(rows=4),
        equal={"loss": ROUNDING, "gradients": DIFFERENTIATED},
        why="fused kernels round otherwise; one layer is compiled, which takes a dozen seconds",
        plant=plants_training.norms_have_another_eps,
        missing=no_compiler,
    ),
    Row(
        id="bf16-autocast",
        cells=("t5_sum_sft", "bert_sa_sft", "gpt2_sum_lora"),
        one=training.trained(dropout=False, precision="fp32", learning_rate=1e-5),
        other=training.trained(dropout=False, precision="bf16", learning_rate=1e-5),
        equal={"losses": within(4e-3, drift=2e-3), "moves": of_whole(0.1)},
        why="bf16 has 8 bits, 2e-3 a rounding, which sums over many products even out; master weights stay fp32",
        plant=plants_training.weights_are_kept_in_bf16,
    ),
    Row(
        id="bf16-autocast-happens",
        cells=("gpt2_sum_lora", "bert_sa_sft"),
        one=training.trained(dropout=False, precision="fp32"),
        other=training.trained(dropout=False, precision="bf16"),
        equal={"losses": within(4e-3, least=1e-6)},
        why="a run in bf16 that gives fp32's losses was not one",
        plant=plants_training.autocast_does_nothing,
    ),
)

RANKS = (
    Row(
        id="two-ranks",
        cells=("gpt2_sum_lora",),
        one=training.trained(dropout=False),
        other=training.trained(dropout=False, together=Ranks),
        equal=TRAINED,
        why="the same sums in another order, over ranks whose rows have unequal numbers of targets",
        plant=plants_training.ranks_take_the_mean,
        ranks=2,
    ),
    Row(
        id="three-ranks-of-which-one-idles",
        cells=("t5_sum_sft",),
        one=training.trained(dropout=False),
        other=training.trained(dropout=False, together=Ranks),
        equal=TRAINED,
        why="as with two; the last update has two rows for three ranks",
        plant=plants_training.ranks_take_the_mean,
        ranks=3,
    ),
    Row(
        id="shared-out",
        cells=("gpt2_sum_lora",),
        one=training.trained(dropout=False),
        other=training.trained(dropout=False, together=Sharded),
        equal=TRAINED,
        why="FSDP2 sums the same gradients, in parts",
        plant=plants_training.shards_take_the_mean,
        ranks=2,
        missing=no_fsdp2,
    ),
)

COURSE = (
    Row(
        id="resumed",
        cells=("gpt2_sum_lora", "bert_qa_qlora", "t5_sum_sft", "bert_sa_lora"),
        one=training.trained(),
        other=training.interrupted(),
        equal=EXACTLY_TRAINED | {"order": SAME_BITS},
        why="a file holds all that the next update depends on, bit by bit",
        plant=plants_training.moments_are_not_kept,
    ),
    Row(
        id="resumed-dropout",
        cells=("gpt2_sum_lora", *METHODS_OF_ADAPTERS, *OVER_NF4, "gpt2_sa_bitfit", "t5_sum_prompt"),
        one=training.trained(),
        other=training.interrupted(after=1),
        equal=EXACTLY_TRAINED | {"order": SAME_BITS},
        why="random numbers go on where they were, as does what a method keeps between updates: every one of the zoo",
        plant=plants_training.random_numbers_are_not_kept,
    ),
    Row(
        id="two-seeds",
        cells=("gpt2_sum_lora", "bert_sa_lora"),
        one=training.shuffled(seed=0),
        other=training.shuffled(seed=1),
        equal={"losses": within(2.0, least=1e-4), "order": OTHER, "weights": OTHER},
        why="a seed draws rows, dropout and new weights",
        plant=plants_training.seed_is_ignored,
    ),
    Row(
        id="two-processes",
        cells=("bert_sa_lora",),
        one=processes.here(),
        other=processes.elsewhere(hash_seed=4),
        equal={"losses": SAME_BITS, "order": SAME_BITS, "weights": SAME_BITS},
        why="one seed gives the same bits, whatever hashes Python gives strings",
        plant=plants_training.order_follows_the_hash_of_strings,
    ),
)

ROWS_READ = (
    Row(
        id="a-loader-with-workers",
        cells=("bert_qa_lora", "t5_sum_sft"),
        one=loaded.batched(workers=0),
        other=loaded.batched(workers=1),
        equal={"batches": SAME_BITS, "next random number": SAME_BITS},
        why="workers only collate",
        plant=plants_loaded.workers_draw_a_number_more,
    ),
    Row(
        id="streamed",
        cells=("bert_qa_lora", "gpt2_sa_lora"),
        one=loaded.in_memory(),
        other=loaded.streamed(),
        equal={"row ids": SAME_BITS, "token ids": SAME_BITS},
        why="the same rows in the same order, whatever they are read from",
        plant=plants_loaded.blocks_lose_their_rest,
    ),
    Row(
        id="streamed-stopped-and-resumed",
        cells=("bert_qa_lora",),
        one=loaded.in_memory(),
        other=loaded.streamed(stopped=True),
        equal={"row ids": SAME_BITS, "token ids": SAME_BITS},
        why="each row comes once, though reading stopped in the middle of a file and of a block",
        plant=plants_loaded.state_is_not_taken_up,
    ),
    Row(
        id="streamed-by-workers",
        cells=("bert_qa_lora",),
        one=loaded.in_memory(shuffled=True),
        other=loaded.streamed(workers=2),
        equal={"row ids": SAME_BITS, "token ids": SAME_BITS},
        why="workers share the files out, so that each row comes once",
        plant=plants_loaded.every_worker_reads_everything,
    ),
)

QUANTIZED = (
    Row(
        id="levels",
        cells=("bert_sa_qlora",),
        one=quantized.tables(by_definition=True),
        other=quantized.tables(by_definition=False),
        equal={"levels": within(1e-7)},
        why="quantiles in single and in double precision; constants have 24 bits",
        plant=plants_quantized.zero_is_no_level,
    ),
    Row(
        id="nf4",
        cells=("bert_sa_qlora",),
        one=quantized.packed(by_definition=True),
        other=quantized.packed(by_definition=False),
        equal=NF4_EXACTLY,
        why="packing rounds nothing but what its definition rounds; a mean of scales is summed in another order",
        plant=plants_quantized.last_block_takes_the_scale_before,
    ),
    Row(
        id="nf4-unpacked",
        cells=("bert_sa_qlora",),
        one=quantized.packed(by_definition=True),
        other=quantized.packed(by_definition=False),
        equal={"unpacked": within(1e-6), "unpacked in bf16": within(1e-4)},
        why="a scale has one rounding more or less; where that turns the last bit of bf16, few numbers do",
        plant=plants_quantized.scales_lose_their_mean,
    ),
    Row(
        id="nf4-layers",
        cells=("bert_sa_qlora", "gpt2_sa_qlora", "t5_sum_qlora"),
        one=quantized.packed_layers(by_definition=True),
        other=quantized.packed_layers(by_definition=False),
        equal=NF4_EXACTLY,
        why="what a model holds is the checkpoint's weights, packed once; GPT-2's layers are transposed before",
        plant=plants_quantized.levels_are_fp4,
    ),
    Row(
        id="moments-of-8-bits",
        cells=("bert_qa_qlora",),
        one=quantized.stepped(by_definition=True),
        other=quantized.stepped(by_definition=False),
        equal={
            "first moments": SAME_BITS,
            "second moments": SAME_BITS,
            "scales": within(1e-6),
            "weights": within(1e-6),
        },
        why="codes are the nearest ones, as near as a CPU's table can tell; sums are a rounding apart",
        plant=updates.signed_second_moments,
    ),
)


def option(cell: str, plain: object, **changes: object) -> Row:
    """A row for the first of these options of the recipe, whose plant leaves it at another value."""
    name = next(iter(changes))
    return Row(
        id=f"option-{name}",
        cells=(cell,),
        one=options.by_formula(**changes),
        other=training.trained(dropout=False, **changes),
        equal=TRAINED | {"rates": within(1e-9)},
        why="one training by formula and one by the libraries: fp32's rounding",
        plant=plants_saved.loses(name, plain),
    )


OPTIONS = (
    option("bert_qa_lora", 2e-3, learning_rate=7e-4),
    option("bert_qa_sft", None, head_learning_rate=2e-2),
    option("bert_qa_sft", 0.01, weight_decay=5.0),
    option("gpt2_sum_lora", "linear", lr_scheduler_type="cosine", warmup_ratio=0.0),
    option("gpt2_sum_lora", 0, warmup_steps=2),
    option("gpt2_sum_lora", 0.0, warmup_ratio=0.5),
    option("t5_sum_sft", 1.0, max_grad_norm=1e-9),
    Row(
        id="option-optim",
        cells=("bert_qa_lora",),
        one=training.trained(dropout=False, optim="adamw_torch"),
        other=training.trained(dropout=False, optim="adamw_bnb_8bit"),
        equal={"losses": within(1e-2), "moves": of_whole(0.2, least=1e-6)},
        why="moments of 8 bits are within some percent of whole ones, and are not they",
        plant=plants_saved.loses("optim", "adamw_torch"),
    ),
    Row(
        id="options-of-trainer",
        cells=("bert_sa_lora",),
        one=options.arguments_by_name(asked=True),
        other=options.arguments_by_name(asked=False),
        equal={"arguments": SAME_BITS},
        why="what `TrainingArguments` say is what the optimizer has, by every name that can be made here",
        plant=plants_saved.betas_are_lost,
    ),
)

SERVED = {"learned": SAME_BITS, "logits": SAME_BITS, "token ids": SAME_BITS}

SAVING = (
    Row(
        id="saved-adapter",
        cells=(*METHODS_OF_ADAPTERS, *OVER_NF4, "bert_sum_lora"),
        one=saved.kept(),
        other=saved.served(),
        equal=SERVED,
        why="a file holds fp32, bit by bit: the adapter and the head beside it",
        plant=plants_saved.heads_are_not_saved,
    ),
    Row(
        id="saved-token-rows",
        cells=("gpt2_sum_lora", "gpt2_sum_qlora"),
        one=saved.kept(),
        other=saved.served(),
        equal=SERVED,
        why="the row of a new token is trained, saved and loaded like an adapter",
        plant=plants_saved.token_rows_are_not_saved,
    ),
    Row(
        id="saved-whole",
        cells=("t5_sum_sft", "bert_sa_sft", "gpt2_sa_bitfit", "bert_sum_sft", "gpt2_sum_sft", "t5_sum_prompt"),
        one=saved.kept(),
        other=saved.served(),
        equal=SERVED,
        why="a file holds fp32, bit by bit",
        plant=plants_saved.files_hold_halves,
    ),
    Row(
        id="saved-tokenizer",
        cells=("bert_sa_lora", "gpt2_sum_lora", "t5_sum_lora"),
        one=saved.tokenizer_at_hand(),
        other=saved.tokenizer_loaded(),
        equal=dict.fromkeys(("settings", "special ids", "whole", "cut", "padded", "template", "decoded"), SAME_BITS),
        why="a tokenizer is its files",
        plant=plants_saved.tokenizer_forgets_its_sides,
    ),
    Row(
        id="two-adapters-two-files",
        cells=("gpt2_sa_lora", "gpt2_sa_dora", "gpt2_sa_ia3", "bert_sa_oft", "gpt2_sa_vera", "gpt2_sum_lora", "gpt2_sa_qlora"),
        one=saved.adapters_as_they_are(),
        other=saved.adapters_in_files(),
        equal={"adapters": SAME_BITS},
        why="a file holds one adapter's tensors, all of them, and nobody else's",
        plant=plants_saved.files_hold_every_adapter,
    ),
    Row(
        id="two-adapters-of-like-names",
        cells=("gpt2_sa_lora",),
        one=saved.adapters_as_they_are("default_2"),
        other=saved.adapters_in_files("default_2"),
        equal={"adapters": SAME_BITS},
        why="a name that begins like another is another",
        plant=plants_saved.files_hold_every_adapter,
    ),
)

MERGING = (
    Row(
        id="merged",
        cells=METHODS_OF_ADAPTERS,
        one=merged.answers_of_layers(merged=False),
        other=merged.answers_of_layers(merged=True),
        equal={"layers": ROUNDING, "logits": within(1e-4)},
        why="x W + x D is x (W + D), but for rounding, which later layers carry on",
        plant=plants_saved.merged_without_scale,
    ),
    Row(
        id="unmerged",
        cells=METHODS_OF_ADAPTERS,
        one=merged.base_weights(),
        other=merged.base_weights(after="merged and unmerged"),
        equal={"weights": within(2e-6)},
        why="W + D - D loses what fell off the end of W + D; IA3 divides by what it multiplied by, plus 1e-8",
        plant=plants_saved.unmerging_takes_off_half,
    ),
    Row(
        id="unmerged-exactly",
        cells=("gpt2_sa_lora", "t5_sum_lora"),
        one=merged.base_weights(exact=True),
        other=merged.base_weights(exact=True, after="merged and unmerged"),
        equal={"weights": SAME_BITS},
        why="on a grid where sums are exact nothing falls off",
        plant=plants_saved.unmerging_takes_off_half,
    ),
    Row(
        id="safe-merge",
        cells=METHODS_OF_ADAPTERS,
        one=merged.merged_for_good(),
        other=merged.merged_for_good(safe_merge=True),
        equal={"weights": within(1e-6), "logits": ROUNDING},
        why="the same sum, on a copy that is looked at",
        plant=plants_saved.safe_merge_adds_twice,
    ),
    Row(
        id="safe-merge-refuses",
        cells=("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_ia3", "gpt2_sa_vera"),
        one=merged.broken_adapter(merged=False),
        other=merged.broken_adapter(merged=True),
        equal={"refused": SAME_BITS, "weights": SAME_BITS},
        why="a merger that would leave numbers that are none is refused, and the layer stays as it was",
        plant=plants_saved.safe_merge_looks_at_nothing,
    ),
    Row(
        id="one-by-one",
        cells=("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_ia3", "t5_sum_lora"),
        one=merged.two_merged(("default", "second")),
        other=merged.two_merged(("default",), ("second",)),
        equal={"weights": within(1e-6)},
        why="two adapters are added in the same order, at once or one after the other",
        plant=plants_saved.only_the_first_named_is_merged,
    ),
    Row(
        id="the-other-way-round",
        cells=("gpt2_sa_lora", "gpt2_sa_ia3"),
        one=merged.two_merged(("default", "second")),
        other=merged.two_merged(("second", "default")),
        equal={"weights": within(1e-6)},
        why="sums, and products, do not depend on their order but for rounding",
        plant=plants_saved.only_the_first_named_is_merged,
    ),
    Row(
        id="adapters-in-a-batch",
        cells=("gpt2_sa_lora", "t5_sum_lora", "bert_sa_lora", "gpt2_sa_qlora"),
        one=merged.each_adapter_alone(),
        other=merged.adapters_in_a_batch(),
        equal={"logits": ROUNDING},
        why="a row goes through the adapter and the head that it names",
        plant=plants_saved.the_active_adapter_answers_for_all,
    ),
)

PAIRED = ("t5_sum_lora",)  # without a head of its own, which `add_weighted_adapter` refuses


def weighted(name: str, formula: str, weights: tuple[float, float], plant: Plant, why: str, **search: object) -> Row:
    """A row for one way to make an adapter of two."""
    return Row(
        id=f"weighted-{name}",
        cells=PAIRED,
        one=merged.by_formula(weights, formula),
        other=merged.combined(weights, **search),
        equal={"weights": within(1e-5)},
        why=why,
        plant=plant,
    )


HALVES, OFF = (0.7, 0.4), (1.0, -1.0)
KEPT, PRUNED = "nothing is pruned", "all is pruned"
ROOTS = "its formula is a product of sums, not the sum of products"
WEIGHTED = (
    weighted("cat", "sum", HALVES, plants_saved.weights_are_lost, "ranks side by side", combination_type="cat"),
    weighted("svd", "sum", HALVES, plants_saved.weights_are_lost, "a full SVD leaves nothing out", combination_type="svd"),
    weighted("linear", "linear", HALVES, plants_saved.weights_are_lost, ROOTS, combination_type="linear"),
    weighted("linear-sign", "linear", (0.7, -0.4), plants_saved.signs_are_lost, ROOTS, combination_type="linear"),
    Row(
        id="weighted-first-alone",
        cells=PAIRED,
        one=merged.answers_of("default"),
        other=merged.answers_of_first_alone(),
        equal={"logits": ROUNDING},
        why="weights of 1 and 0 leave the first adapter",
        plant=plants_saved.weights_are_lost,
    ),
    weighted("cat-off", "nothing", OFF, plants_saved.signs_are_lost, "an adapter less itself", combination_type="cat"),
    weighted("svd-off", "nothing", OFF, plants_saved.signs_are_lost, "an adapter less itself", combination_type="svd"),
    weighted("linear-off", "nothing", OFF, plants_saved.signs_are_lost, "an adapter less itself", combination_type="linear"),
    *(
        weighted(f"{way}-1", "linear", HALVES, plants_saved.weights_are_lost, KEPT, combination_type=way, density=1.0)
        for way in ("magnitude_prune", "dare_linear")
    ),
    *(
        weighted(f"{way}-1", "sum", HALVES, plants_saved.weights_are_lost, KEPT, combination_type=way, density=1.0)
        for way in ("magnitude_prune_svd", "dare_linear_svd")
    ),
    *(
        weighted(f"{way}-0", "nothing", HALVES, plants_saved.one_value_survives, PRUNED, combination_type=way, density=0.0)
        for way in ("magnitude_prune", "magnitude_prune_svd", "ties", "ties_svd")
    ),
)  # fmt: skip

ROWS = (
    *TRAINING,
    *READING,
    *SEARCHING,
    *ARITHMETIC,
    *RANKS,
    *COURSE,
    *ROWS_READ,
    *QUANTIZED,
    *OPTIONS,
    *SAVING,
    *MERGING,
    *WEIGHTED,
)

# What installed libraries do not hold: measured with transformers 5.24.0, PEFT 0.21.2, datasets 5.2.0.
KNOWN = (
    Known(
        id="packed-beside-a-cache",
        cells=("gpt2_sum_sft",),
        one=answers.one_by_one(),
        other=answers.packed(),
        equal={"logits": ROUNDING},
        library="transformers",
        what="rows of a packed sequence see each other unless `use_cache=False` is given, in training, too",
        source="huggingface/transformers#39194, which parts them for training without a cache",
    ),
    Known(
        id="resumed-behind-a-buffer",
        cells=("bert_qa_lora",),
        one=loaded.in_memory(shuffled=True),
        other=loaded.streamed(stopped=True, buffer=8),
        equal={"row ids": SAME_BITS},
        library="datasets",
        what="a stream that goes on from its state has lost rows of its shuffle buffer, and gives others twice",
        source="huggingface/datasets#7901, #8408",
    ),
    Known(
        id="dare-0",
        cells=PAIRED,
        one=merged.by_formula(HALVES, "nothing"),
        other=merged.combined(HALVES, combination_type="dare_linear", density=0.0),
        equal={"weights": ROUNDING},
        library="PEFT",
        what="DARE at density 0 divides by it: every weight is NaN, where nothing should be left",
    ),
    Known(
        id="dare-0-svd",
        cells=PAIRED,
        one=merged.by_formula(HALVES, "nothing"),
        other=merged.combined(HALVES, combination_type="dare_linear_svd", density=0.0),
        equal={"weights": ROUNDING},
        library="PEFT",
        what="the same, of which there is no SVD",
        refused="the input matrix contained non-finite values",
    ),
    Known(
        id="weighted-token-rows",
        cells=("gpt2_sum_lora",),
        one=merged.answers_of("default"),
        other=merged.answers_of_first_alone(),
        equal={"logits": ROUNDING},
        library="PEFT",
        what="`add_weighted_adapter` leaves the trained rows of new tokens behind, and refuses nothing",
    ),
    Known(
        id="weighted-heads",
        cells=("gpt2_sa_lora", "t5_qa_lora", "bert_qa_lora"),
        one=merged.by_formula(HALVES, "sum"),
        other=merged.combined(HALVES, combination_type="cat"),
        equal={"weights": ROUNDING},
        library="PEFT",
        what="adapters with a head each are not combined",
        refused="Cannot add weighted adapters if they target the same module with modules_to_save",
    ),
    Known(
        id="codes-of-8-bits",
        cells=("bert_qa_qlora",),
        one=quantized.stepped(by_definition=True, step=0.0),
        other=quantized.stepped(by_definition=False),
        equal={"second moments": SAME_BITS},
        library="bitsandbytes",
        what="on a CPU, 8-bit codes are looked up in steps of 2^-15: 3 % of second moments get another level than the nearest",
        source="bitsandbytes-foundation/bitsandbytes#1901, which brought the table",
    ),
    Known(
        id="an-adapter-named-like-a-module",
        cells=("gpt2_sa_lora",),
        one=saved.adapters_as_they_are("attn"),
        other=saved.adapters_in_files("attn"),
        equal={"adapters": SAME_BITS},
        library="PEFT",
        what="an adapter beside one that is named like a module on the way to its layers loses them in its file",
        source="huggingface/peft#3584",
    ),
    Known(
        id="optim_args-of-adamw",
        cells=("bert_sa_lora",),
        one=options.arguments_by_name(of=options.IGNORED, asked=True),
        other=options.arguments_by_name(of=options.IGNORED, asked=False),
        equal={"arguments": SAME_BITS},
        library="transformers",
        what="AdamW drops `optim_args` without a word",
        source="huggingface/transformers#21317",
    ),
    Known(
        id="optim_args-of-rmsprop_bnb",
        cells=("bert_sa_lora",),
        one=options.arguments_by_name(of=options.TEXTS, asked=True),
        other=options.arguments_by_name(of=options.TEXTS, asked=False),
        equal={"arguments": SAME_BITS},
        library="transformers",
        what="bitsandbytes' RMSprop gets `optim_args` as texts, and cannot be made",
        refused="not supported between instances of 'float' and 'str'",
    ),
    Known(
        id="merged-nf4",
        cells=("gpt2_sa_qlora", "bert_sa_qoft"),
        one=merged.answers_of_layers(merged=False),
        other=merged.answers_of_layers(merged=True),
        equal={"layers": within(1e-2)},
        library="PEFT",
        what="a merged layer is packed anew, which rounds most of an adapter away; bf16 alone would be 4e-3 apart",
    ),
    Known(
        id="merged-nf4-dora",
        cells=("gpt2_sa_qdora",),
        one=merged.answers_of_layers(merged=False),
        other=merged.answers_of_layers(merged=True),
        equal={"layers": within(1e-2)},
        library="PEFT",
        what="as above",
    ),
    Known(
        id="merged-nf4-ia3",
        cells=("gpt2_sa_qia3",),
        one=merged.answers_of_layers(merged=False),
        other=merged.answers_of_layers(merged=True),
        equal={"layers": within(1e-2)},
        library="PEFT",
        what="vectors are not merged into packed layers; the error says nothing",
        refused="NotImplementedError: ",
    ),
    Known(
        id="adapters-in-a-batch-of-others",
        cells=("gpt2_sa_vera", "gpt2_sa_ia3", "bert_sa_oft"),
        one=merged.each_adapter_alone(),
        other=merged.adapters_in_a_batch(),
        equal={"logits": ROUNDING},
        library="PEFT",
        what="all methods but LoRA drop `adapter_names` without a word: each row gets the active adapter",
    ),
    Known(
        id="two-adapters-of-adalora",
        cells=("gpt2_sa_adalora",),
        one=saved.adapters_as_they_are(),
        other=saved.adapters_in_files(),
        equal={"adapters": SAME_BITS},
        library="PEFT",
        what="two adapters of AdaLoRA do not train beside each other",
        refused="AdaLoraModel supports only 1 trainable adapter",
    ),
    Known(
        id="two-of-ln-merged",
        cells=("gpt2_sa_ln",),
        one=merged.two_merged(("default",), ("second",)),
        other=merged.two_merged(("default", "second")),
        equal={"weights": SAME_BITS},
        library="PEFT",
        what="two sets of norms take one place",
        refused="LN tuning does not allow merging more than one adapter at a time",
    ),
    Known(
        id="adapters-of-dora-in-a-batch",
        cells=("gpt2_sa_dora",),
        one=merged.each_adapter_alone(),
        other=merged.adapters_in_a_batch(),
        equal={"logits": ROUNDING},
        library="PEFT",
        what="rows of a batch cannot name an adapter of DoRA",
        refused="Cannot pass `adapter_names` when DoRA is enabled",
    ),
)
