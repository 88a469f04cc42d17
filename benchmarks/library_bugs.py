"""Real silent bugs of libraries, each with the patch that puts it back into the installed library, and the cell that it hits.

A patch in `benchmarks/library_patches` changes the library and nothing of ours, as strongly as the bug did. What no quick
cell can meet is in `INEXPRESSIBLE`, with the reason. `HARMLESS` are changes that a check must not take for a bug.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.library_patches import adapters, attention, generation, harmless, loaders, loading, merging, text, updates
from tunegrid.grid.cells import Grid, study
from tunegrid.grid.methods import Lora
from tunegrid.grid.profiles import Profile
from tunegrid.grid.zoo import zoo

Patch = Callable[[Any], None]  # of a `Planting`


def nothing(plant: Any) -> None:
    """No patch."""


def unchanged(profile: Profile, folder: Path) -> Profile:
    """The profile as it is."""
    return profile


def of_zoo(profile: Profile, folder: Path) -> Profile:
    """The zoo's profile."""
    return replace(profile, id="zoo", zoo=True)


def with_method(method: Lora) -> Callable[[], Grid]:
    """The study's grid with one more method, whose cells train as LoRA's do; as users add one."""

    def grid() -> Grid:
        one_more = study()
        one_more.add_method(method, like="lora")
        return one_more

    return grid


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a library, or of what it is given.

    Attributes:
        what: what it did, or does.
        cells: the quick cells to run.
        patch: changes the installed library by way of a `Planting`.
        setting: makes the profile that the cells run at, of the quick one and of a folder for files.
        grid: makes the grid that the cells are of.
    """

    id: str
    what: str
    cells: tuple[str, ...]
    patch: Patch = nothing
    setting: Callable[[Profile, Path], Profile] = unchanged
    grid: Callable[[], Grid] = study


@dataclass(frozen=True, kw_only=True)
class Bug(Change):
    """A bug of a released library, or of a port of it; `source` names where it was.

    Attributes:
        refusal: the words in which reading the rows refuses to go on; empty where the cell trains.
        breaks: the invariant of `library_invariants` that it breaks, where no quick cell meets it.
        seen_by: the row of benchmarks/test_equivalent.py that it breaks, too.
        on_ranks: it needs ranks that share weights out.
        module: library and class of the module that it is in, of those in which a model computes; empty where it is in none.
        unseen: why figures of modules cannot show it before training.
    """

    library: str
    source: str
    refusal: str = ""
    breaks: str = ""
    seen_by: str = ""
    on_ranks: bool = False
    module: str = ""
    unseen: str = ""


@dataclass(frozen=True, kw_only=True)
class Inexpressible:
    """A bug that no quick cell can meet, and why."""

    id: str
    library: str
    what: str
    source: str
    why: str


def _bug(number: int, library: str, cell: str, patch: Patch, what: str, source: str, series: str = "B", **more: Any) -> Bug:
    return Bug(id=f"{series}{number:02}", library=library, cells=(cell,), patch=patch, what=what, source=source, **more)


_later = partial(_bug, series="A")


BUGS = (
    _bug(
        2,
        "transformers",
        "t5_sum_sft",
        attention.cross_attention_without_mask,
        "the decoder's cross-attention ignores the padding of the source",
        "huggingface/transformers#41890, #15479",
        module="transformers.T5Stack",
    ),
    _bug(
        4,
        "transformers",
        "gpt2_sa_sft",
        attention.last_column_is_classified,
        "GPT-2's classifier reads the batch's last column, not the row's last real token",
        "huggingface/transformers#35911, #24265, #16372",
        module="transformers.GPT2ForSequenceClassification",
    ),
    _bug(
        6,
        "transformers",
        "t5_sum_qlora",
        attention.bias_forgets_the_cache,
        "T5's relative bias forgets the cache's length in cached decoding",
        "huggingface/candle#899, huggingface/transformers#44602",
        module="transformers.T5Attention",
    ),
    _bug(
        8,
        "transformers",
        "bert_sum_sft",
        attention.decoder_sees_the_answer,
        "BERT as decoder is not causal: training sees the answer",
        "huggingface/transformers#48745, #48760",
        module="transformers.BertModel",
    ),
    _bug(
        10,
        "transformers",
        "t5_qa_sft",
        attention.t5_is_scaled,
        "T5 under SDPA is scaled by 1/sqrt(d), where T5 scales nothing",
        "huggingface/transformers#46946, #47014",
        module="transformers.T5Attention",
    ),
    _bug(
        12,
        "transformers",
        "bert_qa_lora",
        loading.positions_are_zero,
        "a buffer is left uninitialised: BERT's position ids are all 0",
        "huggingface/transformers#48892",
        module="transformers.BertEmbeddings",
    ),
    _bug(
        14,
        "transformers",
        "bert_sum_lora",
        loading.gelu_is_approximated,
        '"gelu" resolves to the tanh approximation',
        "huggingface/transformers#2807, PaddlePaddle/PaddleFleet#363",
        module="transformers.BertIntermediate",
    ),
    _bug(
        16,
        "torch",
        "t5_qa_sft",
        attention.bias_without_gradient,
        "the attention bias gets no gradient through SDPA: T5's relative bias never trains",
        "pytorch/pytorch#148476, #188302",
        module="transformers.T5Attention",
    ),
    _bug(
        18,
        "peft",
        "gpt2_qa_lora",
        adapters.scale_of_rslora,
        "LoRA is scaled by alpha/sqrt(r), though rsLoRA is off",
        "huggingface/peft#2733, sgl-project/sglang#40835",
        module="peft.Linear",
    ),
    _bug(
        20,
        "peft",
        "bert_qa_qlora",
        adapters.dropout_is_skipped,
        "4-bit LoRA layers skip lora_dropout",
        "huggingface/peft#1806",
        module="peft.Linear4bit",
    ),
    _bug(
        22,
        "peft",
        "gpt2_sa_qlora",
        adapters.adapters_in_bf16,
        "adapters of a quantized base are kept and trained in bf16, not fp32",
        "huggingface/peft#1706, #1090",
    ),
    _bug(
        24,
        "peft",
        "bert_qa_lora",
        adapters.dropout_stays_active,
        "lora_dropout stays active at evaluation",
        "huggingface/peft#3753, #3766, huggingface/transformers#34469",
        module="peft.Linear",
    ),
    _bug(
        26,
        "bitsandbytes",
        "t5_sa_qlora",
        loading.packed_scales,
        "the CPU's dequantization uses the packed absmax",
        "bitsandbytes-foundation/bitsandbytes#1549",
        module="bitsandbytes.Linear4bit",
    ),
    _bug(
        28,
        "bitsandbytes",
        "bert_sa_qlora",
        loading.blocks_of_128,
        "weights are quantized in blocks of 128, not of 64",
        "bitsandbytes-foundation/bitsandbytes#1873, #1856",
    ),
    _bug(
        30,
        "bitsandbytes",
        "bert_qa_qlora",
        updates.signed_second_moments,
        "8-bit Adam keeps second moments in the map for signed numbers",
        "bitsandbytes-foundation/bitsandbytes#227, #121, #152",
    ),
    _bug(
        32,
        "transformers",
        "t5_sum_qlora",
        loading.wo_is_quantized,
        "T5's wo is no longer kept out of quantization",
        "huggingface/transformers#20287, #43374",
    ),
    _bug(
        34,
        "accelerate",
        "bert_sa_lora",
        updates.schedule_stepped_twice,
        "the schedule is stepped twice an update",
        "huggingface/accelerate#2142, #2926, #1398",
    ),
    _bug(
        36,
        "accelerate",
        "gpt2_qa_lora",
        updates.norm_without_clipping,
        "clip_grad_norm_ does not clip",
        "huggingface/accelerate#641",
    ),
    _bug(
        38,
        "torch",
        "gpt2_sum_sft",
        updates.moments_without_correction,
        "Adam's moments are not bias-corrected",
        "Oneflow-Inc/oneflow#5960",
    ),
    _bug(
        40,
        "tokenizers",
        "t5_qa_lora",
        text.first_offset_is_late,
        "the first token's offset starts one character late",
        "huggingface/tokenizers#1300, huggingface/transformers#16321",
    ),
    _bug(
        42,
        "transformers",
        "t5_sum_sft",
        text.decoding_cleans_up,
        "decode() cleans up spaces where it should not",
        "huggingface/transformers#42898, #31938",
    ),
    _bug(
        44,
        "transformers",
        "gpt2_sum_lora",
        attention.gpt2_options_are_ignored,
        "GPT-2's scaling options are ignored under SDPA",
        "huggingface/transformers#44380, #44397",
        module="transformers.GPT2Attention",
    ),
    _bug(
        46,
        "torch",
        "bert_sa_sft",
        attention.dropout_at_evaluation,
        "attention dropout stays active at evaluation under SDPA",
        "pytorch/pytorch#124464, karpathy/nanoGPT#240",
        module="transformers.BertSelfAttention",
    ),
    _bug(
        48,
        "transformers",
        "t5_sum_sft",
        generation.beams_keep_their_cache,
        "beam search does not reorder the cache",
        "huggingface/transformers#46612, #46639",
    ),
    _bug(
        52,
        "datasets",
        "bert_sa_sft",
        text.rows_before_the_mapping,
        "select returns other rows than asked for",
        "huggingface/datasets#3459, #7127",
        setting=harmless.rows_in_parquet,
        refusal="no rows to use; each stands in a split that scores",
    ),
)

LORA_WITH_BIAS = Lora(id="loralb", name="LoRA with biases", options={"lora_bias": True})
PATTERNS: Mapping[str, Any] = {"rank_pattern": {"value": 4}, "alpha_pattern": {"self.value": 64}}
LORA_BY_PATTERN = Lora(id="lorapat", name="LoRA by patterns", options=PATTERNS)

LATER = (
    _later(
        4,
        "peft",
        "gpt2_sum_qlora",
        adapters.sum_in_the_compute_type,
        "4-bit LoRA rounds the sum to the type it computes in, not only the adapter's part",
        "huggingface/peft#2238",
        module="peft.Linear4bit",
        unseen="the adapter adds 0 before training, and the sum is rounded to a type that it fits already",
    ),
    _later(
        6,
        "unsloth-zoo",
        "gpt2_sum_qlora",
        merging.merged_onto_the_original,
        "QLoRA is merged onto the 16-bit original, not onto the unpacked base that it trained over",
        "unslothai/unsloth-zoo#810, axolotl-ai-cloud/axolotl#3771, huggingface/peft#2105, #2321",
        breaks="merging_starts_from_the_packed_base",
    ),
    _later(
        8,
        "accelerate",
        "gpt2_sa_lora",
        updates.divided_by_accumulation_again,
        "`backward` divides by the accumulation steps again",
        "huggingface/accelerate#3533, huggingface/transformers#40709",
    ),
    _later(
        10,
        "bitsandbytes",
        "bert_qa_qlora",
        updates.everything_in_8_bits,
        "`min_8bit_size` is ignored: norms, biases and small adapters get 8-bit moments",
        "bitsandbytes-foundation/bitsandbytes#1286",
    ),
    _later(
        14,
        "transformers",
        "t5_sum_lora",
        generation.source_without_mask,
        "`generate` of encoder-decoders drops the source's mask, which training had",
        "huggingface/transformers#36293",
    ),
    _later(
        16,
        "transformers",
        "gpt2_sum_lora",
        loaders.truncation_is_saved,
        "truncation that was on once is saved in tokenizer.json: who reads it cuts texts",
        "vllm-project/llm-compressor#2917, #1418",
        breaks="saved_tokenizers_read_whole",
    ),
    _later(
        18,
        "unsloth-zoo",
        "gpt2_sum_lora",
        loading.growing_overwrites_rows,
        "growing the vocabulary overwrites rows that were trained",
        "unslothai/unsloth-zoo#923",
    ),
    _later(
        20,
        "liger-kernel",
        "t5_sum_sft",
        updates.norms_are_summed_in_bf16,
        "the gradient of a norm's weight is summed in bf16",
        "linkedin/Liger-Kernel#950, pytorch/pytorch#190828",
        module="transformers.T5LayerNorm",
    ),
    _later(
        22,
        "torch",
        "gpt2_sa_lora",  # the only quick cell in bf16
        updates.casts_outlive_no_grad,
        "autocast keeps a cast that was made under no_grad: the weight gets no gradient",
        "pytorch/pytorch#158232, #165068",
    ),
    _later(
        26,
        "peft",
        "bert_sa_rslora",
        adapters.scale_is_reset_without_rslora,
        "rsLoRA's alpha/sqrt(r) becomes alpha/r once a scale is set and unset",
        "huggingface/peft#2775",
        setting=of_zoo,
        grid=zoo,
    ),
    _later(
        28,
        "peft",
        "bert_qa_loralb",
        merging.bias_without_scale,
        "`lora_bias=True`: merging adds the adapter's bias without its scale",
        "huggingface/peft#2489",
        grid=with_method(LORA_WITH_BIAS),
    ),
    _later(
        30,
        "peft",
        "bert_sa_lora",
        merging.dropped_deltas_are_not_rescaled,
        "DARE never divides by the density",
        "huggingface/peft#3152",
        breaks="dropped_deltas_keep_their_mean",
    ),
    _later(
        32,
        "peft",
        "bert_qa_lorapat",
        adapters.one_key_for_both_patterns,
        "a key of rank_pattern hides one of alpha_pattern: the layer gets another scale",
        "huggingface/peft#2195",
        grid=with_method(LORA_BY_PATTERN),
        module="peft.Linear",
    ),
    _later(
        34,
        "peft",
        "gpt2_sa_lora",
        merging.likely_named_adapters_are_saved_along,
        'saving adapter "foo" also writes the tensors of "foobar"',
        "huggingface/peft#3282",
        seen_by="two-adapters-of-like-names",
        breaks="files_hold_their_adapter",
    ),
    _later(
        36,
        "peft",
        "t5_sum_lora",
        merging.patterns_name_no_embedding,
        "an embedding that a pattern targets is adapted, and its base not saved",
        "huggingface/peft#2649, #2638",
        breaks="embeddings_are_saved",
    ),
    _later(
        38,
        "peft",
        "bert_sa_oft",
        merging.rotations_turn_the_other_way,
        "OFT's parameters mean another rotation than in the release that saved them",
        "huggingface/peft#2805",
        setting=of_zoo,
        grid=zoo,
        breaks="rotations_are_cayleys",
    ),
    _later(
        40,
        "peft",
        "bert_sa_dora",
        merging.norms_of_merged_weights,
        "adapters merged one after another give other weights than as one list",
        "huggingface/peft#3482",
        setting=of_zoo,
        grid=zoo,
        breaks="merging_in_turn_is_merging_at_once",
    ),
    _later(
        42,
        "unsloth-zoo",
        "bert_qa_lora",
        merging.half_of_the_layers_merge_nothing,
        "a part of the layers is merged with a scale of 0",
        "unslothai/unsloth-zoo#806, unslothai/unsloth#2966",
    ),
    _later(
        44,
        "trl",
        "gpt2_sum_lora",
        loaders.end_is_ignored,
        "the end token is masked out of the loss because it is the padding token, too",
        "huggingface/trl#3200, #6357, #5988",
        breaks="ends_are_learned",
    ),
    _later(
        46,
        "transformers",
        "gpt2_sum_lora",
        attention.packed_rows_see_each_other,
        "packed texts attend to each other",
        "huggingface/transformers#46634, #39121, axolotl-ai-cloud/axolotl#3796, pytorch/torchtitan#4075",
        seen_by="packed",
        breaks="packed_rows_stay_apart",
    ),
    _later(
        48,
        "accelerate",
        "bert_sa_lora",
        loaders.sharded_sampler_keeps_its_epoch,
        "`set_epoch` misses a sampler in a sharded batch sampler: every epoch has one order",
        "huggingface/accelerate#3556",
        breaks="epochs_reach_samplers",
    ),
    _later(
        50,
        "accelerate",
        "bert_sa_lora",
        loaders.iteration_is_lost,
        "the iteration's number is lost on resume",
        "huggingface/accelerate#4071",
        breaks="skipping_keeps_the_iteration",
    ),
    _later(
        52,
        "bitsandbytes",
        "bert_sa_qlora",
        loading.bits_of_the_byte_before,
        "a packed byte carries the bits of the byte before it",
        "bitsandbytes-foundation/bitsandbytes#1721",
    ),
    _later(
        54,
        "bitsandbytes",
        "bert_qa_qlora",
        updates.gradients_by_memory,
        "8-bit optimizers read gradients that are not contiguous in the order of memory",
        "bitsandbytes-foundation/bitsandbytes#1187",
        breaks="layouts_step_alike",
    ),
    _later(
        58,
        "torch",
        "gpt2_sum_lora",
        attention.masked_rows_are_no_numbers,
        "SDPA on a CPU gives NaN, not 0, for a query that is fully masked",
        "pytorch/pytorch#141128",
        module="transformers.GPT2Attention",
    ),
    _later(
        60,
        "transformerlens",
        "gpt2_sum_lora",
        loaders.side_of_padding_is_forgotten,
        "a `padding_side` that a user set is the default's again after loading",
        "TransformerLensOrg/TransformerLens#1283",
        breaks="saved_tokenizers_keep_their_side",
    ),
    _later(
        62,
        "datasets",
        "bert_sa_lora",
        loaders.yielded_twice,
        "a formatted stream without features is yielded twice",
        "huggingface/datasets#8063",
        breaks="formatted_rows_come_once",
    ),
    _later(
        64,
        "datasets",
        "bert_sa_lora",
        loaders.columns_of_the_first_block,
        "JSON lines: a key that the first block lacks is missing from all",
        "huggingface/datasets#8069",
        breaks="late_columns_are_read",
    ),
    _later(
        66,
        "datasets",
        "bert_sa_lora",
        loaders.workers_share_a_generator,
        "workers share one shuffle generator: several passes differ",
        "huggingface/datasets#7823",
        breaks="workers_shuffle_by_themselves",
    ),
    _later(
        70,
        "torch",
        "gpt2_sum_sft",
        updates.clipped_by_the_local_norm,
        "`clip_grad_norm_` takes a rank's own norm under FSDP2",
        "pytorch/pytorch#170862",
        on_ranks=True,
    ),
    _later(
        76,
        "accelerate",
        "bert_sa_lora",
        loaders.idle_ranks_get_the_last_sample,
        "`split_between_processes` gives the last sample to every idle rank",
        "huggingface/accelerate#4052",
        breaks="ranks_share_samples",
    ),
    _later(
        80,
        "datasets",
        "bert_sa_lora",
        loaders.rank_of_the_other_split,
        "a stream that is split by node twice gives a rank another one's rows",
        "huggingface/datasets#6994",
        breaks="nodes_share_all_rows",
    ),
    _later(
        82,
        "torchtitan",
        "t5_sum_lora",
        loaders.loss_per_batch,
        "the loss of an evaluation is averaged per batch, not per target",
        "pytorch/torchtitan#4167",
        breaks="evaluation_is_the_mean_of_rows",
    ),
)

INEXPRESSIBLE = (
    Inexpressible(
        id="B50",
        library="transformers",
        what="Trainer normalises the accumulated loss by the wrong number of items",
        source="huggingface/transformers#35438, #37766, #46903",
        why="our loop is not Trainer's, and divides by the targets that it counts; `test_parity.py` compares the two",
    ),
    Inexpressible(
        id="B54",
        library="torch",
        what="gradients are clipped before they are unscaled",
        source="harubaru/waifu-diffusion#64, TorchSSL/TorchSSL#59",
        why="only fp16 scales losses; the quick grid trains on a CPU, where fp16 becomes bf16 and accelerate makes no scaler",
    ),
)

ACROSS = ("gpt2_sa_lora", "t5_sum_qlora", "gpt2_qa_sft")  # every task and every method, in short cells

HARMLESS = (
    Change(
        id="order",
        what="LoRA's product in another order of operations",
        cells=("gpt2_sa_lora", "bert_qa_qlora", "t5_qa_lora"),
        patch=harmless.product_in_another_order,
    ),
    Change(id="threads", what="two threads in place of one", cells=ACROSS, setting=harmless.two_threads),
    Change(id="no-op", what="linear layers add 0 and clone", cells=ACROSS, patch=harmless.operation_without_effect),
    Change(id="noise", what="weights times 1 + 1e-6 x noise", cells=ACROSS, setting=harmless.moved_in_the_last_digits),
    Change(id="parquet", what="the same rows from Parquet", cells=("bert_sa_sft",), setting=harmless.rows_in_parquet),
)
