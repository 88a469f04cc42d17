"""Declares the study's three `Backbone`s with their heads, and finds their checkpoints."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError
from tunegrid.grid.recipes import QUICK_PROFILE, Profile
from tunegrid.grid.tasks import Problem


class Layout(StrEnum):
    """The arrangement of source and target in a model that generates text."""

    ENCODER_DECODER = "encoder_decoder"
    SEPARATED = "separated"  # source + separator + target in one causal sequence
    # The tokenizer's chat template: the source is the user's turn, the target the assistant's.
    CHAT = "chat"


class Objective(StrEnum):
    """A backbone's pretraining objective."""

    MASKED = "masked"  # predict masked tokens of a text (BERT)
    CAUSAL = "causal"  # predict each next token (GPT-2)
    SPANS = "spans"  # generate masked spans in the decoder (T5)


# The layouts that a head may have for each kind of problem. A head with the layout None generates
# nothing: it classifies or marks spans.
LAYOUTS: Mapping[Problem, tuple[Layout | None, ...]] = {
    Problem.CLASSIFY: (None,),
    Problem.EXTRACT: (None, Layout.CHAT),
    Problem.GENERATE: (Layout.ENCODER_DECODER, Layout.SEPARATED, Layout.CHAT),
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output layers on a backbone for one kind of problem.

    Attributes:
        architecture: the model class, or the name of a class in transformers or
            `tunegrid.codecs.architectures`.
        new_modules: modules without pretrained weights. Every method trains them in full; QLoRA
            leaves them unquantized.
        adapted_modules: new modules that get adapters, like pretrained ones; under an adapter,
            their random weights stay frozen.
        optional_modules: pretrained modules that encoder-only checkpoints lack; a missing one
            starts with random weights.
        renewable_modules: pretrained layers that count as new if a local checkpoint lacks them,
            such as BERT's pooler.
        tied_modules: pretrained output modules that share weights with the embeddings; QLoRA leaves
            them unquantized.
        new_token: a token added to the vocabulary; every method trains its embedding row.
        layout: how source and target are arranged; None if the head generates no text.
        start_token: the tokenizer attribute, without its `_id` suffix, of the decoder's first
            token; None means cls_token if the tokenizer has one, otherwise pad_token.
        dropouts: as in `Backbone`, for the head's own modules.
        copied_as: the id of a study cell. Copies of a cell with this head do not inherit the head:
            they use the backbone's default head, and take adapted layers and the quick learning
            rate from this study cell.
    """

    architecture: str | type[Any]
    new_modules: tuple[str, ...] = ()
    adapted_modules: tuple[str, ...] = ()
    tied_modules: tuple[str, ...] = ()
    optional_modules: tuple[str, ...] = ()
    renewable_modules: tuple[str, ...] = ()
    new_token: str | None = None
    layout: Layout | None = None
    start_token: str | None = None
    dropouts: Mapping[str, str] = field(default_factory=dict, repr=False)
    copied_as: str | None = None

    @property
    def renewed_modules(self) -> list[str]:
        """The renewable modules that the checkpoint lacks and that therefore count as new."""
        return [module for module in self.renewable_modules if module in self.new_modules]


@dataclass(frozen=True, kw_only=True)
class Wrap:
    """Special tokens around one text (`before` text `after`) or two.

    Two texts are wrapped as `before` text `between` text `after`. Each field names a tokenizer
    attribute without its `_id` suffix; None adds no token.
    """

    before: str | None
    between: str
    after: str | None


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained model family.

    Attributes:
        checkpoint: id on the hub, or a local folder; `folder` is its name below a
            `--checkpoint-root`.
        revision: the commit to load from the hub; None loads the newest.
        micro: the folder in `fixtures/backbones` that replaces the checkpoint in micro profiles.
        segments: whether token type ids distinguish the two texts.
        dtype: the type in which a frozen base is loaded; trainable weights are always fp32.
        overflows_fp16: whether the model's activations exceed fp16's range.
        objective: the pretraining objective, which `--ask=forgetting` needs; if it is None,
            forgetting is not measured.
        shape: the checkpoint's config, for building a model of its true size without its weights.
        dropouts: maps a pattern for the names of dropout modules to the field of the checkpoint's
            config that holds their rate; "a or b" means b if a is null.
        special_tokens: special token ids by tokenizer attribute, such as "cls_token_id".
        vocabulary: the number of token ids in the tokenizer.
    """

    id: str
    name: str
    checkpoint: str
    revision: str | None = None
    micro: str | None = None
    wrap: Wrap
    segments: bool = False
    dtype: str = "float32"
    overflows_fp16: bool = False
    objective: Objective | None = None
    shape: Mapping[str, Any] = field(repr=False)
    special_tokens: Mapping[str, int] = field(repr=False)
    vocabulary: int
    dropouts: Mapping[str, str] = field(default_factory=dict, repr=False)
    heads: Mapping[Problem, Head]

    @property
    def folder(self) -> str:
        """The checkpoint's name without its owner."""
        return self.checkpoint.split("/")[-1]


BERT = Backbone(
    id="bert",
    name="BERT",
    checkpoint="google-bert/bert-base-uncased",
    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
    micro="bert-micro",
    wrap=Wrap(before="cls_token", between="sep_token", after="sep_token"),
    segments=True,
    objective=Objective.MASKED,
    shape={
        "model_type": "bert",
        "vocab_size": 30_522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    special_tokens={"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102},
    vocabulary=30_522,
    dropouts={
        r"attention\.self\.dropout": "attention_probs_dropout_prob",
        r"(embeddings|output)\.dropout": "hidden_dropout_prob",
    },
    heads={
        Problem.CLASSIFY: Head(
            architecture="BertForSequenceClassification",
            new_modules=("classifier",),
            renewable_modules=("pooler.dense",),  # a BertForMaskedLM has no pooler
            dropouts={
                r"^(base_model\.model\.)?dropout": "classifier_dropout or hidden_dropout_prob"
            },
        ),
        Problem.EXTRACT: Head(architecture="BertForQuestionAnswering", new_modules=("qa_outputs",)),
        # Cross-attention is new too, but it starts as a copy of the decoder's self-attention
        # (`paired_state`), so it is adapted like the rest. The study's 6,537,216 trainable
        # parameters leave no room for training it in full.
        Problem.GENERATE: Head(
            architecture="BertToBert",
            tied_modules=("predictions.decoder",),
            optional_modules=("pooler", "predictions"),
            layout=Layout.ENCODER_DECODER,
        ),
    },
)
GPT2 = Backbone(
    id="gpt2",
    name="GPT-2",
    checkpoint="openai-community/gpt2",
    revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
    micro="gpt2-micro",
    wrap=Wrap(before=None, between="eos_token", after=None),
    objective=Objective.CAUSAL,
    shape={
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "bos_token_id": 50_256,
        "eos_token_id": 50_256,
    },
    special_tokens={"eos_token_id": 50_256},
    vocabulary=50_257,
    dropouts={
        r"attn\.attn_dropout": "attn_pdrop",
        r"(attn\.resid_dropout|mlp\.dropout)": "resid_pdrop",
        r"transformer\.drop": "embd_pdrop",
    },
    heads={
        Problem.CLASSIFY: Head(
            architecture="GPT2ForSequenceClassification", new_modules=("score",)
        ),
        # One Linear(768, 2) is the study's two Linear(768, 1), stacked.
        Problem.EXTRACT: Head(architecture="GPT2ForQuestionAnswering", new_modules=("qa_outputs",)),
        Problem.GENERATE: Head(
            architecture="GPT2LMHeadModel",
            tied_modules=("lm_head",),
            new_token="<sum>",
            layout=Layout.SEPARATED,
        ),
    },
)
T5 = Backbone(
    id="t5",
    name="T5",
    checkpoint="google-t5/t5-small",
    revision="df1b051c49625cf57a3d0d8d3863ed4d13564fe4",
    micro="t5-micro",
    wrap=Wrap(before=None, between="eos_token", after="eos_token"),
    overflows_fp16=True,
    objective=Objective.SPANS,
    shape={
        "model_type": "t5",
        "vocab_size": 32_128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "feed_forward_proj": "relu",
        "num_layers": 6,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    special_tokens={"pad_token_id": 0, "eos_token_id": 1},
    vocabulary=32_100,
    dropouts={
        r"(layer\.\d+|DenseReluDense|encoder|decoder)\.dropout": "dropout_rate",
        r"(SelfAttention|EncDecAttention)\.dropout": "dropout_rate",
    },
    heads={
        Problem.CLASSIFY: Head(architecture="T5EncoderClassifier", new_modules=("classifier",)),
        Problem.EXTRACT: Head(architecture="T5EncoderSpan", new_modules=("qa_outputs",)),
        Problem.GENERATE: Head(
            architecture="T5ForConditionalGeneration",
            tied_modules=("lm_head",),
            layout=Layout.ENCODER_DECODER,
        ),
    },
)

BACKBONES = (BERT, GPT2, T5)

# The study's bert_sa_lora adapts only this two-layer head (its recipe targets fc1 and fc2). The
# encoder and the head's own base weights stay at their initial values; no module trains in full.
BERT_MLP = Head(
    architecture="BertMLPClassifier",
    adapted_modules=("fc1", "fc2"),
    renewable_modules=("pooler.dense",),
    copied_as="bert_sa_qlora",
)


def is_part(name: str, modules: Iterable[str]) -> bool:
    """Checks whether a parameter or layer belongs to one of `modules`.

    "score.weight" belongs to "score"; "my_score" does not.
    """
    return any(f".{module}." in f".{name}." for module in modules)


def complete_head(head: Head, backbone: Backbone, profile: Profile) -> Head:
    """Adds the renewable modules that the user's checkpoint lacks to the head's new modules."""
    folder = own_checkpoint(backbone, profile)
    if folder is None or not head.renewable_modules or profile.random_weights:
        return head
    from safetensors import SafetensorError, safe_open

    keys: list[str] = []
    for path in folder.glob("model*.safetensors"):
        with suppress(OSError, SafetensorError):  # loading the model reports it
            file: Any = safe_open(path, "np")
            keys += file.keys()
    if not keys:
        return head
    names = ".".join(keys)
    missing = [module for module in head.renewable_modules if not is_part(names, [module])]
    return replace(head, new_modules=(*missing, *head.new_modules))


def local_checkpoint(backbone: Backbone, profile: Profile) -> Path | None:
    """The local folder of a backbone's checkpoint; None if it is loaded from the hub."""
    root = profile.checkpoint_root
    folder = Path(backbone.checkpoint)
    if root and profile.micro and backbone.micro:
        return root / backbone.micro
    if folder.is_absolute():
        return folder
    if root:
        return root / backbone.folder
    if folder.is_dir():
        return folder
    return None


def own_checkpoint(backbone: Backbone, profile: Profile) -> Path | None:
    """The folder of the user's own checkpoint; None if it is a micro checkpoint or on the hub."""
    folder = local_checkpoint(backbone, profile)
    if folder is None or folder.parent == QUICK_PROFILE.checkpoint_root:
        return None
    return folder


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def checkpoint_source(backbone: Backbone, profile: Profile) -> tuple[str, dict[str, Any]]:
    """Arguments for `from_pretrained`: a local folder, or an id on the hub and its revision.

    Raises InputError if a local folder is missing, lacks a config, a tokenizer or safetensors
    weights, or holds a model of the wrong type or not of the shape that the user gave.
    """
    folder = local_checkpoint(backbone, profile)
    if folder is None:
        return backbone.checkpoint, {"revision": backbone.revision} if backbone.revision else {}
    pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
    if not folder.is_dir():
        advice = f"below {folder.parent}"
        if not Path(backbone.checkpoint).is_absolute():
            advice += "; name it as the hub's model"
        raise InputError(f"no checkpoint folder {folder.name!r} {advice}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; save it there with save_pretrained")
    config = read_config(folder)
    needed_kind = backbone.shape.get("model_type")
    for kind in model_types(config):
        if needed_kind and kind != needed_kind:
            fault = f"{folder} holds a model of type {kind}"
            raise InputError(f"{fault}; this cell needs {needed_kind}")
    # A folder that --checkpoint-root puts in a checkpoint's place may be of another size, and so may
    # one that a user gives a built-in backbone.
    is_own_shape = backbone.shape not in [known.shape for known in BACKBONES]
    if is_own_shape and folder == Path(backbone.checkpoint):
        for name, value in backbone.shape.items():
            if config.get(name, value) != value:
                fault = f"{folder} has {name} {config[name]}, the shape of {backbone.id} {value}"
                raise InputError(f"{fault}; give the checkpoint's own")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        names = ", ".join(TOKENIZER_FILES)
        raise InputError(f"{folder} has no tokenizer ({names}); save it there with save_pretrained")
    if not any(folder.glob("*.safetensors")):
        reason = "no weights"
        if pickles:
            reason = f"only {pickles[0]}, a pickle, which can run code when it is read"
        hint = "save model.safetensors there (save_pretrained writes it)"
        raise InputError(f"{folder} has {reason}; {hint}")
    return str(folder), {}


def model_types(config: Mapping[str, Any]) -> list[str]:
    """The types that a checkpoint's config names: of a pair, those of encoder and decoder."""
    kind = config.get("model_type")
    if kind == "encoder-decoder":
        return [*model_types(config["encoder"]), *model_types(config["decoder"])]
    return [kind] if kind else []


def read_config(folder: Path) -> Mapping[str, Any]:
    """The fields of a checkpoint's config.json; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(fields, dict):
            return fields
    return {}
