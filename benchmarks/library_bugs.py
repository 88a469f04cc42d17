"""Real silent bugs of libraries, each with the patch that puts it back into the installed library, and the cell that it hits.

A patch in `benchmarks/library_patches` changes the library and nothing of ours, as strongly as the bug did. What no quick
cell can meet is in `INEXPRESSIBLE`, with the reason. `HARMLESS` are changes that a check must not take for a bug.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.library_patches import adapters, attention, generation, harmless, loading, text, updates
from tunegrid.grid.profiles import Profile


def nothing(monkeypatch: Any) -> None:
    """No patch."""


def unchanged(profile: Profile, folder: Path) -> Profile:
    """The profile as it is."""
    return profile


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a library, or of what it is given.

    Attributes:
        what: what it did, or does.
        cells: the quick cells to run.
        patch: changes the installed library by way of pytest's monkeypatch.
        setting: makes the profile that the cells run at, of the quick one and of a folder for files.
    """

    id: str
    what: str
    cells: tuple[str, ...]
    patch: Callable[[Any], None] = nothing
    setting: Callable[[Profile, Path], Profile] = unchanged


@dataclass(frozen=True, kw_only=True)
class Bug(Change):
    """A bug of a released library, or of a port of it; `source` names where it was.

    Attributes:
        refusal: the words in which reading the rows refuses to go on; empty where the cell trains.
    """

    library: str
    source: str
    refusal: str = ""


@dataclass(frozen=True, kw_only=True)
class Inexpressible:
    """A bug that no quick cell can meet, and why."""

    id: str
    library: str
    what: str
    source: str
    why: str


def _bug(number: int, library: str, cell: str, patch: Callable[[Any], None], what: str, source: str, **setting: Any) -> Bug:
    return Bug(id=f"B{number:02}", library=library, cells=(cell,), patch=patch, what=what, source=source, **setting)


BUGS = (
    _bug(
        2,
        "transformers",
        "t5_sum_sft",
        attention.cross_attention_without_mask,
        "the decoder's cross-attention ignores the padding of the source",
        "huggingface/transformers#41890, #15479",
    ),
    _bug(
        4,
        "transformers",
        "gpt2_sa_sft",
        attention.last_column_is_classified,
        "GPT-2's classifier reads the batch's last column, not the row's last real token",
        "huggingface/transformers#35911, #24265, #16372",
    ),
    _bug(
        6,
        "transformers",
        "t5_sum_qlora",
        attention.bias_forgets_the_cache,
        "T5's relative bias forgets the cache's length in cached decoding",
        "huggingface/candle#899, huggingface/transformers#44602",
    ),
    _bug(
        8,
        "transformers",
        "bert_sum_sft",
        attention.decoder_sees_the_answer,
        "BERT as decoder is not causal: training sees the answer",
        "huggingface/transformers#48745, #48760",
    ),
    _bug(
        10,
        "transformers",
        "t5_qa_sft",
        attention.t5_is_scaled,
        "T5 under SDPA is scaled by 1/sqrt(d), where T5 scales nothing",
        "huggingface/transformers#46946, #47014",
    ),
    _bug(
        12,
        "transformers",
        "bert_qa_lora",
        loading.positions_are_zero,
        "a buffer is left uninitialised: BERT's position ids are all 0",
        "huggingface/transformers#48892",
    ),
    _bug(
        14,
        "transformers",
        "bert_sum_lora",
        loading.gelu_is_approximated,
        '"gelu" resolves to the tanh approximation',
        "huggingface/transformers#2807, PaddlePaddle/PaddleFleet#363",
    ),
    _bug(
        16,
        "torch",
        "t5_qa_sft",
        attention.bias_without_gradient,
        "the attention bias gets no gradient through SDPA: T5's relative bias never trains",
        "pytorch/pytorch#148476, #188302",
    ),
    _bug(
        18,
        "peft",
        "gpt2_qa_lora",
        adapters.scale_of_rslora,
        "LoRA is scaled by alpha/sqrt(r), though rsLoRA is off",
        "huggingface/peft#2733, sgl-project/sglang#40835",
    ),
    _bug(
        20,
        "peft",
        "bert_qa_qlora",
        adapters.dropout_is_skipped,
        "4-bit LoRA layers skip lora_dropout",
        "huggingface/peft#1806",
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
    ),
    _bug(
        26,
        "bitsandbytes",
        "t5_sa_qlora",
        loading.packed_scales,
        "the CPU's dequantization uses the packed absmax",
        "bitsandbytes-foundation/bitsandbytes#1549",
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
    ),
    _bug(
        46,
        "torch",
        "bert_sa_sft",
        attention.dropout_at_evaluation,
        "attention dropout stays active at evaluation under SDPA",
        "pytorch/pytorch#124464, karpathy/nanoGPT#240",
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
