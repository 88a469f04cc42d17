"""Codecs for text generation: from each row's source, the model generates one text.

There are two layouts. In the encoder-decoder layout (BERT2BERT, T5), source and target are
separate. In the causal layout, they form one sequence, and the loss ignores the source:
`SeparatedCodec` (GPT-2) puts a new token between them, and `tunegrid.codecs.chat` puts a chat
template around them.

Shapes: B rows, S source tokens, T target tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from inspect import signature
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.base import (
    IGNORED,
    Batch,
    Codec,
    Feature,
    Prediction,
    alphanumeric,
    move_batch,
    pad,
    without_labels,
)
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import Generation


class GenerateCodec(Codec):
    """Base class for all layouts; makes targets, generates as the recipe says, and decodes texts.

    Attributes:
        generation: the recipe's generation settings.
        max_target_length: maximum number of tokens in a target, including its end token.
        lead: text before the target's first word.
        start_id: the decoder's first token; None if generation continues the prompt.
    """

    generates: ClassVar[bool] = True
    lead: str = ""
    start_id: int | None = None

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """Raises InputError if generation settings are missing or allow texts that are too long.

        A text that continues its prompt may have at most `max_target_length` tokens, so that prompt
        and text fit into `max_length`.
        """
        recipe = cell.recipe
        if not (recipe.generation and recipe.max_target_length):
            field = "max_target_length" if recipe.generation else "generation"
            raise InputError(f"{cell.id} generates text, so its recipe needs {field}")
        self.generation = recipe.generation
        self.max_target_length = recipe.max_target_length
        super().__init__(cell, tokenizer)
        longest = self.generation.max_new_tokens
        if self.start_id is None and longest > self.max_target_length:
            room = self.max_target_length
            raise InputError(
                f"{cell.id} leaves room for {room} tokens behind a source, "
                f"but generates up to {longest}; give its recipe max_target_length {longest}, "
                "or a generation with fewer max_new_tokens"
            )

    @property
    def end_id(self) -> int:
        """The token that ends a target: EOS, or else [SEP]. Raises InputError if neither exists."""
        token: int | None = self.tokenizer.eos_token_id
        if token is None:
            token = self.tokenizer.sep_token_id
        if token is None:
            fault = "its tokenizer has neither an eos_token nor a sep_token"
            raise InputError(f"{self.cell.id} generates text, but {fault}")
        return token

    def target_text(self, row: Row) -> str:
        """The text that the model learns to generate."""
        return str(row[self.task.target])

    def answers(self, rows: Sequence[Row]) -> list[list[int]]:
        """Each row's target tokens and end token, at most `max_target_length` in all."""
        texts = [self.lead + self.target_text(row) for row in rows]
        room = self.max_target_length - 1
        return [[*tokens[:room], self.end_id] for tokens in self.to_ids(texts)]

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature per row: the truncated source as `input_ids`, and the target's tokens."""
        sources = self.to_ids([self.text(row) for row in rows])
        features: list[Feature] = []
        for source, target in zip(sources, self.answers(rows), strict=True):
            ids = self.fit(source)
            features.append(Feature(example=len(features), input_ids=ids, target=target))
        return features

    def draw_feature(self, rng: Random) -> Feature:
        """A random source and a random target, both at full length."""
        source = self.fit(self.tokenizer.draw(rng, self.room))
        target = [*self.tokenizer.draw(rng, self.max_target_length - 1), self.end_id]
        return Feature(example=0, input_ids=source, target=target)

    def targets(self, batch: Batch) -> int:
        """The number of target tokens."""
        return int((batch["labels"] != IGNORED).sum())

    def predict(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        device: torch.device,
    ) -> list[Any]:
        """The ids generated for each feature, up to and including the first end token, if any."""
        return [self.cut_at_end(ids) for ids in self.generate(model, features, device).tolist()]

    def generate(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        device: torch.device,
        **options: Any,
    ) -> Any:
        """The model's `generate` output without prompts; `options` override the recipe's settings.

        Settings in a checkpoint's generation_config are ignored.
        """
        prompt = move_batch(device, self.prompt(features))
        with patch.dict(vars(model.generation_config), vars(hf.GenerationConfig()), clear=True):
            output = model.generate(**prompt, **self.search | options)  # type: ignore[operator]
        start = prompt["input_ids"].shape[1] if self.start_id is None else 1
        if isinstance(output, Tensor):
            return output[:, start:]
        output.sequences = output.sequences[:, start:]
        return output

    @property
    def search(self) -> dict[str, Any]:
        """The recipe's generation settings, as fields of a `GenerationConfig`."""
        return self.search_settings(self.generation)

    def search_settings(self, rules: Generation) -> dict[str, Any]:
        """Generation settings and special tokens, as fields of a `GenerationConfig`."""
        search = asdict(rules)
        search["do_sample"] = False
        search["use_cache"] = True
        search["pad_token_id"] = self.pad_id
        search["eos_token_id"] = self.end_id
        search["decoder_start_token_id"] = self.start_id
        if self.start_id is None:  # in causal models, `min_length` counts the prompt
            search["min_new_tokens"] = search.pop("min_length") or None
        return search

    def prompt(self, features: Sequence[Feature]) -> Batch:
        """The model's input for generation, padded on the left if generation continues it."""
        return self.inputs([feature.input_ids for feature in features], left=self.start_id is None)

    def cut_at_end(self, ids: list[int]) -> list[int]:
        """The ids up to and including the first end token, or all ids if they contain none."""
        return ids[: ids.index(self.end_id) + 1] if self.end_id in ids else ids

    def decode(
        self,
        rows: Sequence[Row],
        features: Sequence[Feature],
        outputs: Sequence[Any],
    ) -> list[Prediction]:
        """One prediction per feature, since each row has exactly one feature."""
        words = [self.strip_end(ids) for ids in outputs]
        texts = self.tokenizer.batch_decode(words, skip_special_tokens=True)
        return [Prediction(value=text.strip()) for text in texts]

    def decode_alone(self, output: list[int]) -> str | None:
        """Decodes an output with the tokenizer's Rust backend, without transformers.

        Returns None if there is no such backend, or if transformers would clean up spaces.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or self.tokenizer.clean_up_tokenization_spaces:
            return None
        text: str = backend.decode(self.strip_end(output), skip_special_tokens=True)
        return text.strip()

    def strip_end(self, output: list[int]) -> list[int]:
        """An output without its end token."""
        return output[:-1] if self.has_end(output) else output

    def has_end(self, output: Any) -> bool:
        """Checks whether an output ends with the end token."""
        return bool(output) and output[-1] == self.end_id

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Checks whether labels are the row's target and end token; long targets may be cut."""
        target_ids = label[label != IGNORED].tolist()
        if not self.has_end(target_ids) or len(target_ids) > self.max_target_length:
            return False
        if self.tokenizer.unk_token_id in target_ids[:-1]:
            return True
        text = alphanumeric(self.tokenizer.decode(target_ids[:-1]))
        target = alphanumeric(self.target_text(row))
        if len(target_ids) == self.max_target_length:
            return target.startswith(text)
        return text == target


class EncoderDecoderCodec(GenerateCodec):
    """Gives the encoder the source; the decoder generates the target after a start token."""

    @cached_property
    def start_id(self) -> int:  # type: ignore[override]
        """The decoder's first token: the head's, else [CLS] (BERT2BERT), else padding (T5)."""
        if self.cell.head.start_token:
            return self.special(self.cell.head.start_token)[0]
        cls_id = self.tokenizer.cls_token_id
        return int(self.pad_id if cls_id is None else cls_id)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Sources (B, S), labels (B, T), and the labels shifted right as decoder inputs (B, T)."""
        shifted = [[self.start_id, *feature.target[:-1]] for feature in features]
        decoder_inputs = self.inputs(shifted)
        return {
            **self.prompt(features),
            "decoder_input_ids": decoder_inputs["input_ids"],
            "decoder_attention_mask": decoder_inputs["attention_mask"],
            "labels": pad([feature.target for feature in features], IGNORED),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the target tokens."""
        logits = model(**without_labels(batch), use_cache=False).logits
        return self.criterion(logits.float().flatten(0, 1), batch["labels"].flatten())


class CausalCodec(GenerateCodec):
    """Puts source and target into one sequence of at most `max_length` tokens."""

    @property
    def room(self) -> int:
        """The number of source tokens that fit beside the longest target."""
        return super().room - self.max_target_length

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Sequences (B, S + T), padded on the right; only targets and end tokens have labels."""
        batch = self.inputs([[*feature.input_ids, *feature.target] for feature in features])
        labels = [[*[IGNORED] * len(feature.input_ids), *feature.target] for feature in features]
        return {**batch, "labels": pad(labels, IGNORED)}

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Moves the batch to a device, and adds `kept`, the positions whose next token is learned.

        Positions are counted from the end, and found on the CPU so that no device has to wait.
        """
        positions = (batch["labels"][:, 1:] != IGNORED).any(0).nonzero().flatten()
        return move_batch(device, {**batch, "kept": positions - batch["labels"].shape[1]})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the target tokens; each token predicts the next.

        For a batch from `to_device`, a model that takes `logits_to_keep` computes only the logits
        at the positions `kept`, because vocabularies are large and sources long.
        """
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        labels = batch["labels"]
        owner: Any = getattr(model, "module", model)  # ranks and PEFT wrap the model
        owner = owner.get_base_model() if hasattr(owner, "get_base_model") else owner
        if "kept" in batch and "logits_to_keep" in signature(owner.forward).parameters:
            logits = model(**inputs, use_cache=False, logits_to_keep=batch["kept"]).logits
            labels = labels[:, batch["kept"] + 1]
        else:
            logits = model(**inputs, use_cache=False).logits
            logits = logits[:, -labels.shape[1] : -1]  # PEFT's virtual tokens have logits, too
            labels = labels[:, 1:]
        return self.criterion(logits.float().flatten(0, 1), labels.flatten())


class SeparatedCodec(CausalCodec):
    """One sequence: source + separator (the head's new token, else EOS) + target + EOS."""

    lead = " "  # inside a text, GPT-2's tokens include the space before a word

    def affixes(self) -> tuple[list[int], list[int]]:
        """The tokens before the source, and the separator after it."""
        before, _ = super().affixes()
        token = self.cell.head.new_token
        if token is None:
            return before, [self.end_id]
        return before, [self.tokenizer.convert_tokens_to_ids(token)]
