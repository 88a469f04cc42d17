"""Looks up the model class that `Head.architecture` names: one of transformers' or our own four.

All classes load with `from_pretrained`, so transformers quantizes them and reports missing weights.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from tunegrid.errors import InputError
from tunegrid.grid.backbones import read_config

INITIALIZER_RANGE = 0.02  # as in BERT and GPT-2
HIDDEN = 512  # width of the two-layer head, as in the study


class BertMLPClassifier(hf.BertPreTrainedModel):
    """Classifies BERT's pooled output with two linear layers, ReLU and dropout 0.2."""

    def __init__(self, config: Any) -> None:
        """Builds the layers; `fc1` and `fc2` are not pretrained."""
        super().__init__(config)
        self.bert = hf.BertModel(config)
        self.fc1 = nn.Linear(config.hidden_size, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, config.num_labels)
        self.dropout = nn.Dropout(0.2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        **rest: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, labels) for ids (B, L)."""
        pooled = self.bert(input_ids, attention_mask=attention_mask, **rest).pooler_output
        return SequenceClassifierOutput(logits=self.fc2(self.dropout(torch.relu(self.fc1(pooled)))))


class T5EncoderHead(hf.T5EncoderModel):
    """Base class for T5 encoders with a new linear layer, initialized as in BERT and GPT-2."""

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes new layers; with T5's large states, torch's default gives extreme logits."""
        super()._init_weights(module)
        # T5's own layers have no bias.
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
            nn.init.zeros_(module.bias)


class T5EncoderClassifier(T5EncoderHead):
    """A linear classifier on the mean hidden state of T5's encoder, since T5 has no [CLS] token."""

    def __init__(self, config: Any) -> None:
        """Builds the layers; `classifier` is not pretrained."""
        super().__init__(config)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        **rest: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, labels) for ids (B, L)."""
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        states = output.last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(means))


class T5EncoderSpan(T5EncoderHead):
    """T5's encoder with a linear layer for start and end logits."""

    def __init__(self, config: Any) -> None:
        """Builds the layers; `qa_outputs` is not pretrained."""
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.d_model, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        **rest: Any,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits (B, L) for ids (B, L)."""
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        starts, ends = self.qa_outputs(output.last_hidden_state).unbind(-1)
        return QuestionAnsweringModelOutput(start_logits=starts, end_logits=ends)


class BertToBert(hf.EncoderDecoderModel):
    """BERT2BERT: encoder and decoder are untied copies of one checkpoint (Rothe et al. 2020)."""

    checkpoint_class = hf.BertForPreTraining

    @classmethod
    def from_pretrained(cls, checkpoint: Any, **options: Any) -> Any:
        """Builds encoder and decoder from one BERT checkpoint; returns the model and loading info.

        Cross-attention has no pretrained weights, so it starts as a copy of its layer's
        self-attention. A checkpoint that is already a pair is loaded as it is.
        """
        if checkpoint and "encoder" in read_config(Path(checkpoint)):
            return super().from_pretrained(checkpoint, **options)
        options.pop("output_loading_info", None)
        # Both halves are copied on the CPU in full precision; quantization comes last.
        names = ("revision", "config", "state_dict", "trust_remote_code")
        source_options = {name: options.pop(name) for name in names if name in options}
        if "meta" in str(options.get("device_map")):
            source_options["device_map"] = options["device_map"]
        source, report = cls.checkpoint_class.from_pretrained(
            checkpoint,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            **source_options,
        )
        weights = source.state_dict()
        missing_weights = {name: weights[name] for name in report["missing_keys"]}
        missing_state = paired_state(missing_weights)
        values = source.config.to_dict() | {"is_decoder": True, "add_cross_attention": True}
        decoder = type(source.config).from_dict(values)
        config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(source.config, decoder)
        model, loading = super().from_pretrained(
            None,
            config=config,
            state_dict=paired_state(weights),
            output_loading_info=True,
            **options,
        )
        model.name_or_path = source.name_or_path  # PEFT writes this name to an adapter's config
        loading["missing_keys"] = {*loading["missing_keys"], *missing_state}
        loading["mismatched_keys"] = {*loading["mismatched_keys"], *report["mismatched_keys"]}
        return model, loading

    @classmethod
    def from_saved(cls, folder: Any, **options: Any) -> Any:
        """Loads a model that `save_pretrained` wrote."""
        return super().from_pretrained(folder, **options)


def paired_state(bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies a `BertForPreTraining`'s weights, named for both halves of a `BertToBert`."""
    state = {}
    for name, tensor in bert.items():
        if name.startswith("bert."):
            state[f"encoder.{name.removeprefix('bert.')}"] = tensor
        is_decoder = name.startswith("bert.") and "pooler" not in name
        if is_decoder or name.startswith("cls.predictions"):
            state[f"decoder.{name}"] = tensor
            if ".attention." in name:
                state[f"decoder.{name.replace('.attention.', '.crossattention.')}"] = tensor
    return {name: tensor.clone() for name, tensor in state.items()}


OWN: dict[str, type[Any]] = {
    "BertMLPClassifier": BertMLPClassifier,
    "T5EncoderClassifier": T5EncoderClassifier,
    "T5EncoderSpan": T5EncoderSpan,
    "BertToBert": BertToBert,
}


def architecture(name: str | type[Any]) -> Any:
    """Looks up the class called `name`, ours or transformers'; returns a class unchanged.

    Raises InputError if the name is unknown.
    """
    if isinstance(name, type):
        return name
    kind = OWN.get(name) or getattr(hf, name, None)
    if not isinstance(kind, type):
        classes = [*OWN, *(entry for entry in dir(hf) if entry[0].isupper() and entry != name)]
        matches = get_close_matches(name, classes, n=1)
        hint = "give a class of transformers by name, or a class of your own"
        if matches:
            hint = f"did you mean {matches[0]}?"
        raise InputError(f"unknown architecture {name!r}; {hint}")
    return kind
