"""Larger backbones: BERT-large, GPT-2-medium, T5-base and T5-large with the study's methods on its tasks, 36 cells.

A recipe is that of the study's backbone of the same family: the same adapter, rate, batch, lengths and epochs, so that two
sizes differ in nothing else. `SOURCED` names the rates that somebody published for this size. The others are extrapolated by
one rule: *a rate does not change with size*. T5's paper fine-tunes all its sizes at one rate (Raffel et al. 2020, section
3.1.2), BERT's searches one range for both of its sizes (Devlin et al. 2019, appendix A.3), and LoRA's has one rate for
GPT-2-medium and GPT-2-large (Hu et al. 2021, table 11). `Recipe.ours` names the rate where it is extrapolated.

Nobody has trained these cells here. They have no micro backbones, so the quick profile has none of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunegrid.grid.backbones import BERT, GPT2, T5, Backbone
from tunegrid.grid.cells import Grid, study
from tunegrid.grid.methods import METHODS
from tunegrid.grid.recipes import Adapter, Fields


def _larger(backbone: Backbone, checkpoint: str, *, id: str, name: str, **shape: Any) -> Backbone:
    """A backbone of the same family. Its revision is not pinned: a record names the one that the hub gave."""
    own = {**backbone.shape, **shape}
    return replace(backbone, id=id, name=name, checkpoint=checkpoint, revision=None, micro=None, shape=own)


# By the backbone of the study whose recipes they have. Shapes are those of the checkpoints' `config.json`.
LARGER: tuple[tuple[Backbone, Backbone], ...] = (
    (
        BERT,
        _larger(
            BERT,
            "google-bert/bert-large-uncased",
            id="bertlarge",
            name="BERT-large",
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
        ),
    ),
    (
        GPT2,
        _larger(
            GPT2,
            "openai-community/gpt2-medium",
            id="gpt2medium",
            name="GPT-2-medium",
            n_embd=1024,
            n_layer=24,
            n_head=16,
        ),
    ),
    (
        T5,
        _larger(
            T5,
            "google-t5/t5-base",
            id="t5base",
            name="T5-base",
            d_model=768,
            d_ff=3072,
            num_layers=12,
            num_decoder_layers=12,
            num_heads=12,
        ),
    ),
    (
        T5,
        _larger(
            T5,
            "google-t5/t5-large",
            id="t5large",
            name="T5-large",
            d_model=1024,
            d_ff=4096,
            num_layers=24,
            num_decoder_layers=24,
            num_heads=16,
        ),
    ),
)

# Rates that were published for this size, with where they stand. All but the first are the study's own rates, too.
SOURCED: Mapping[str, Fields] = {
    # LoRA's script roberta_large_sst2.sh, of a model of the same shape. The study's bert_sa_lora adapts a head alone, which
    # other cells do not inherit (`HEAD_EXCEPTIONS`), so there is no rate to take over.
    "bertlarge_sa_lora": {
        "learning_rate": 4e-4,
        "adapter": Adapter(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=("query", "value")),
    },
    # The README of google-research/bert: SQuAD with BERT-Large, there for 2 epochs of batches of 24
    "bertlarge_qa_sft": {"learning_rate": 3e-5},
    # LoRA's paper, table 11: GPT-2-medium
    "gpt2medium_sa_lora": {"learning_rate": 2e-4},
    "gpt2medium_qa_lora": {"learning_rate": 2e-4},
    # Full fine-tuning of GPT-2-medium beside prefix tuning (Li and Liang 2021; gpt2/train_e2e.py in their code)
    "gpt2medium_sum_sft": {"learning_rate": 5e-5},
}

# Parameters that train, by LoRA, QLoRA and SFT. As in the study, GPT-2's <sum> row does not count beside an adapter.
TRAINED: Mapping[str, tuple[int, int, int]] = {
    "bertlarge_sa": (788_482, 788_482, 335_143_938),
    "bertlarge_qa": (3_147_778, 7_079_938, 334_094_338),
    "bertlarge_sum": (17_367_040, 17_367_040, 771_127_098),
    "gpt2medium_sa": (788_480, 788_480, 354_825_216),
    "gpt2medium_qa": (788_482, 788_482, 354_825_218),
    "gpt2medium_sum": (786_432, 786_432, 354_824_192),
    "t5base_sa": (591_362, 591_362, 109_630_082),
    "t5base_qa": (296_450, 296_450, 109_630_082),
    "t5base_sum": (884_736, 1_769_472, 222_903_552),
    "t5large_sa": (1_574_914, 1_574_914, 334_941_698),
    "t5large_qa": (788_482, 788_482, 334_941_698),
    "t5large_sum": (2_359_296, 4_718_592, 737_668_096),
}


def larger() -> Grid:
    """The study's grid and the cells of larger backbones, which `-m larger` runs."""
    grid = study()
    for like, backbone in LARGER:
        grid.add_backbone(backbone, like=like.id, from_notebook=(), ours=("learning_rate",))
    for pair, counts in TRAINED.items():
        for method, count in zip(METHODS, counts, strict=True):
            cell_id = f"{pair}_{method.id}"
            published = {**SOURCED[cell_id], "ours": ()} if cell_id in SOURCED else {}
            grid.recipes[cell_id] = replace(grid.recipes[cell_id], **published, trainable_params=count)
    return grid


def is_larger(cell_id: str) -> bool:
    """Whether a cell is of one of these backbones."""
    return cell_id.partition("_")[0] in {backbone.id for _, backbone in LARGER}
