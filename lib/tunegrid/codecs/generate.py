"""The codecs of generated text: each row with a source and a target gives one text.

Two layouts. Encoder-decoder (BERT2BERT, T5): source and target apart. Causal: source and target in one sequence, the loss
on the target only; `SeparatedCodec` (GPT-2) puts a new token between the two, `tunegrid.codecs.chat` a chat template around
them. Shapes: B rows, S source tokens, T target tokens.
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

from tunegrid.codecs.base import IGNORED, Batch, Codec, Feature, Prediction, alphanumeric, move_batch, pad
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import Generation


class GenerateCodec(Codec):
    """What all layouts share: loss on target tokens, generation under the recipe's cap, decoding to text.

    Attributes:
        generation: the recipe's search.
        max_target_length: tokens of a target, its end token included.
        lead: what goes before the target's first word.
        start_id: the decoder's first token; None if generation continues the prompt.
    """

    generates: ClassVar[bool] = True
    lead: str = ""
    start_id: int | None = None

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """A codec for `cell` over `tokenizer`; raises InputError if the recipe does not say how to generate.

        Nor may a text that continues its prompt run past `max_length`, and so past the model's positions.
        """
        recipe = cell.recipe
        if not (recipe.generation and recipe.max_target_length):
            field = "max_target_length" if recipe.generation else "generation"
            raise InputError(f"{cell.id} generates text, so its recipe needs {field}")
        self.generation, self.max_target_length = recipe.generation, recipe.max_target_length
        super().__init__(cell, tokenizer)
        longest = self.generation.max_new_tokens
        if self.start_id is None and longest > self.max_target_length:
            raise InputError(
                f"{cell.id} leaves room for {self.max_target_length} tokens behind a source, but generates up to {longest}; "
                f"give its recipe max_target_length {longest}, or a generation with fewer max_new_tokens"
            )

    @property
    def end_id(self) -> int:
        """The token that ends a target: EOS, or [SEP] for a model without one. Raises InputError if there is neither."""
        token: int | None = self.tokenizer.eos_token_id
        if token is None:
            token = self.tokenizer.sep_token_id
        if token is None:
            raise InputError(f"{self.cell.id} generates text, but its tokenizer has neither an eos_token nor a sep_token")
        return token

    def target_text(self, row: Row) -> str:
        """The text to learn."""
        return str(row[self.task.target])

    def answers(self, rows: Sequence[Row]) -> list[list[int]]:
        """Target tokens per row, cut so that the end token survives `max_target_length`."""
        texts = [self.lead + self.target_text(row) for row in rows]
        return [[*tokens[: self.max_target_length - 1], self.end_id] for tokens in self.to_ids(texts)]

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row: its input_ids are the source, cut to its room, its target the target's tokens."""
        pairs = zip(self.to_ids([self.text(row) for row in rows]), self.answers(rows), strict=True)
        return [Feature(example=i, input_ids=self.fit(source), target=target) for i, (source, target) in enumerate(pairs)]

    def draw_feature(self, rng: Random) -> Feature:
        """A source and a target, both at their full length."""
        source = self.fit(self.tokenizer.draw(rng, self.room))
        target = [*self.tokenizer.draw(rng, self.max_target_length - 1), self.end_id]
        return Feature(example=0, input_ids=source, target=target)

    def targets(self, batch: Batch) -> int:
        """One a target token."""
        return int((batch["labels"] != IGNORED).sum())

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """Generated ids a feature, ended by the end token or by `max_new_tokens`."""
        return [self.cut_at_end(ids) for ids in self.generate(model, features, device).tolist()]

    def generate(self, model: nn.Module, features: Sequence[Feature], device: torch.device, **options: Any) -> Any:
        """What `generate` returns by the recipe's search, the prompt's tokens cut off; `options` replace settings of it.

        A checkpoint may bring settings in its generation_config, but the recipe alone says how to generate.
        """
        prompt = move_batch(device, self.prompt(features))
        with patch.dict(vars(model.generation_config), vars(hf.GenerationConfig()), clear=True):
            output = model.generate(**prompt, **self.search | options)  # type: ignore[operator]
        start = prompt["input_ids"].shape[1] if self.start_id is None else 1  # of what is generated
        if isinstance(output, Tensor):
            return output[:, start:]
        output.sequences = output.sequences[:, start:]
        return output

    @property
    def search(self) -> dict[str, Any]:
        """The recipe's search, as fields of a `GenerationConfig`."""
        return self.search_settings(self.generation)

    def search_settings(self, rules: Generation) -> dict[str, Any]:
        """A search by these rules, as fields of a `GenerationConfig`."""
        search = asdict(rules) | {"do_sample": False, "use_cache": True}
        search |= {"pad_token_id": self.pad_id, "eos_token_id": self.end_id, "decoder_start_token_id": self.start_id}
        if self.start_id is None:  # `min_length` counts the prompt of a causal model
            search["min_new_tokens"] = search.pop("min_length") or None
        return search

    def prompt(self, features: Sequence[Feature]) -> Batch:
        """What the model sees before it generates; where generation goes on from its last token, padding is on the left."""
        return self.inputs([feature.input_ids for feature in features], left=self.start_id is None)

    def cut_at_end(self, ids: list[int]) -> list[int]:
        """The ids up to the first end token, which they keep."""
        return ids[: ids.index(self.end_id) + 1] if self.end_id in ids else ids

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """Features and rows are one to one."""
        words = [self.strip_end(ids) for ids in outputs]
        texts = self.tokenizer.batch_decode(words, skip_special_tokens=True)
        return [Prediction(value=text.strip()) for text in texts]

    def decode_alone(self, output: list[int]) -> str | None:
        """An output's text as the tokenizer's file writes it, without transformers; None if its spaces are to be cleaned up."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or self.tokenizer.clean_up_tokenization_spaces:
            return None
        text: str = backend.decode(self.strip_end(output), skip_special_tokens=True)
        return text.strip()

    def strip_end(self, output: list[int]) -> list[int]:
        """An output without its end token."""
        return output[:-1] if self.has_end(output) else output

    def has_end(self, output: Any) -> bool:
        """Whether the end token was generated."""
        return bool(output) and output[-1] == self.end_id

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """The counted labels are the row's target and the end token; only a target that was too long may be cut."""
        target_ids = label[label != IGNORED].tolist()
        if not self.has_end(target_ids) or len(target_ids) > self.max_target_length:
            return False
        text, target = alphanumeric(self.tokenizer.decode(target_ids[:-1])), alphanumeric(self.target_text(row))
        has_unknown = self.tokenizer.unk_token_id in target_ids[:-1]
        return has_unknown or text == target or (len(target_ids) == self.max_target_length and target.startswith(text))


class EncoderDecoderCodec(GenerateCodec):
    """prefix + source + end -> target + end; the decoder starts from the model's own start token."""

    @cached_property
    def start_id(self) -> int:  # type: ignore[override]
        """The decoder's first token: the head's, else [CLS] as in BERT2BERT, else the padding token, as T5's."""
        if self.cell.head.start_token:
            return self.special(self.cell.head.start_token)[0]
        return int(self.pad_id if self.tokenizer.cls_token_id is None else self.tokenizer.cls_token_id)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Source (B, S), decoder inputs and labels (B, T): inputs are the labels shifted right, behind the start token."""
        decoder_inputs = self.inputs([[self.start_id, *feature.target[:-1]] for feature in features])
        return {
            **self.prompt(features),
            "decoder_input_ids": decoder_inputs["input_ids"],
            "decoder_attention_mask": decoder_inputs["attention_mask"],
            "labels": pad([feature.target for feature in features], IGNORED),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the target tokens, summed."""
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}, use_cache=False).logits
        return self.criterion(logits.float().flatten(0, 1), batch["labels"].flatten())


class CausalCodec(GenerateCodec):
    """Source and target in one sequence, which fits `max_length` as a whole, and so does a generated text."""

    @property
    def room(self) -> int:
        """How many tokens of the source fit beside the longest target."""
        return super().room - self.max_target_length

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Whole sequences (B, S + T), padded on the right; labels only where the target and its end token stand."""
        batch = self.inputs([[*feature.input_ids, *feature.target] for feature in features])
        labels = [[*[IGNORED] * len(feature.input_ids), *feature.target] for feature in features]
        return {**batch, "labels": pad(labels, IGNORED)}

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on a device, with `kept`: the places whose next token some row is to learn, counted from the end.

        Found on the host, where looking does not make a device wait.
        """
        positions = (batch["labels"][:, 1:] != IGNORED).any(0).nonzero().flatten()
        return move_batch(device, {**batch, "kept": positions - batch["labels"].shape[1]})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the target tokens, summed; each is the next one of the token before.

        Of a batch that `to_device` made, the model computes logits only where they count: vocabularies are large, sources long.
        """
        inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]
        owner: Any = getattr(model, "module", model)  # ranks and PEFT wrap what may be asked for some places only
        owner = owner.get_base_model() if hasattr(owner, "get_base_model") else owner
        if "kept" in batch and "logits_to_keep" in signature(owner.forward).parameters:
            logits = model(**inputs, use_cache=False, logits_to_keep=batch["kept"]).logits
            labels = labels[:, batch["kept"] + 1]
        else:
            logits = model(**inputs, use_cache=False).logits
            logits, labels = logits[:, -labels.shape[1] : -1], labels[:, 1:]  # learned tokens in front have logits, too
        return self.criterion(logits.float().flatten(0, 1), labels.flatten())


class SeparatedCodec(CausalCodec):
    """source + the head's new token, or EOS where it has none + target + EOS in one sequence."""

    lead = " "  # inside a text, GPT-2's tokens carry the space before a word, and so does the target's first word

    def affixes(self) -> tuple[list[int], list[int]]:
        """The separator stands behind the source."""
        before, _ = super().affixes()
        token = self.cell.head.new_token
        return before, [self.end_id if token is None else self.tokenizer.convert_tokens_to_ids(token)]
