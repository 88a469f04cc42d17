"""Summarization. In: rows {article, highlights}. Out: a generated summary a row.

Two layouts. Encoder-decoder (BERT2BERT, T5): source and target apart. Separated (GPT-2): article + <sum> + summary + EOS in
one causal sequence, the loss on summary and EOS only. Shapes: B rows, S source tokens, T target tokens.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.codecs.base import IGNORED, Batch, Codec, Feature, Prediction, on
from lib.data.sources import Row


class GenerateCodec(Codec):
    """What both layouts share: loss on target tokens, generation under the recipe's cap, decoding to text."""

    lead = ""  # goes before the summary's first word

    @property
    def start_id(self) -> int | None:
        """The decoder's first token; None where the prompt itself goes on."""
        return None

    @property
    def end_id(self) -> int:
        """The token that ends a summary: EOS, or [SEP] for a model without one."""
        token: int = self.tokenizer.sep_token_id if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        return token

    def summary(self, row: Row) -> list[int]:
        """Target tokens, cut so that the end token survives `max_target_length`."""
        assert self.recipe.max_target_length, "a generating recipe has max_target_length"
        return [*self.ids(self.lead + row["highlights"])[: self.recipe.max_target_length - 1], self.end_id]

    def synthetic_summary(self, rng: Random) -> list[int]:
        """Target tokens that fill `max_target_length`."""
        assert self.recipe.max_target_length, "a generating recipe has max_target_length"
        return [*self.tokenizer.draw(rng, self.recipe.max_target_length - 1), self.end_id]

    def targets(self, batch: Batch) -> int:
        """One a target token."""
        return int((batch["labels"] != IGNORED).sum())

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """Generated ids a feature, ended by the end token or by `max_new_tokens`."""
        prompt = on(device, self.prompt(features))
        generation = self.recipe.generation
        assert generation, "a generating recipe says how to generate"
        output = model.generate(  # type: ignore[operator]
            **prompt,
            **asdict(generation),
            do_sample=False,
            use_cache=True,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_id,
            decoder_start_token_id=self.start_id,
        )
        return [self._ended(row) for row in output[:, self._skip(prompt) :].tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.end_id) + 1] if self.end_id in ids else ids

    @abstractmethod
    def prompt(self, features: Sequence[Feature]) -> Batch:
        """What the model sees before it generates."""

    @abstractmethod
    def _skip(self, prompt: Batch) -> int:
        """How many leading tokens of the output are not generated."""

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """Features and rows are one to one."""
        texts = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return [Prediction(value=text.strip()) for text in texts]


class EncoderDecoderCodec(GenerateCodec):
    """prefix + article + end -> summary + end; the decoder starts from the model's own start token."""

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row; the article is cut so that its end token survives `max_length`."""
        room = self.recipe.max_length - len(self.before) - len(self.after)
        return [
            Feature(
                example=i,
                input_ids=[*self.before, *self.ids(self.recipe.prefix + row["article"])[:room], *self.after],
                target=self.summary(row),
            )
            for i, row in enumerate(rows)
        ]

    def synthetic(self, rng: Random) -> Feature:
        """An article and a summary, both at their full length."""
        words = self.tokenizer.draw(rng, self.recipe.max_length - len(self.before) - len(self.after))
        return Feature(example=0, input_ids=[*self.before, *words, *self.after], target=self.synthetic_summary(rng))

    @property
    def start_id(self) -> int:
        """The decoder's first token: [CLS] for BERT2BERT; T5 starts from its padding token."""
        token: int = self.tokenizer.pad_token_id if self.tokenizer.cls_token_id is None else self.tokenizer.cls_token_id
        return token

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Source (B, S), decoder inputs and labels (B, T): inputs are the labels moved right behind the start token."""
        longest = max(len(feature.target) for feature in features)
        shifted = self.inputs([[self.start_id, *feature.target[:-1]] for feature in features])
        labels = [feature.target + [IGNORED] * (longest - len(feature.target)) for feature in features]
        return {
            **self.prompt(features),
            "decoder_input_ids": shifted["input_ids"],
            "decoder_attention_mask": shifted["attention_mask"],
            "labels": torch.tensor(labels),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy summed over target tokens."""
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        return cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    def prompt(self, features: Sequence[Feature]) -> Batch:
        """The source, padded on the right."""
        return self.inputs([feature.input_ids for feature in features])

    def _skip(self, prompt: Batch) -> int:
        return 1  # the start token


class SeparatedCodec(GenerateCodec):
    """article + <sum> + summary + EOS in one sequence."""

    lead = " "  # inside a text, GPT-2's pieces carry the space before a word: the first word is to look like any other

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row: its input_ids are article + <sum>, cut in the article so that <sum> and the summary fit."""
        return [
            Feature(example=i, input_ids=[*self.ids(row["article"])[: self.room], self.separator], target=self.summary(row))
            for i, row in enumerate(rows)
        ]

    @property
    def separator(self) -> int:
        """The id of the head's new token."""
        token: int = self.tokenizer.convert_tokens_to_ids(self.cell.head.new_token)
        return token

    @property
    def room(self) -> int:
        """How many tokens of the article fit."""
        assert self.recipe.max_target_length, "a generating recipe has max_target_length"
        return self.recipe.max_length - self.recipe.max_target_length - 1

    def synthetic(self, rng: Random) -> Feature:
        """An article and a summary that fill `max_length` together."""
        prompt = [*self.tokenizer.draw(rng, self.room), self.separator]
        return Feature(example=0, input_ids=prompt, target=self.synthetic_summary(rng))

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Whole sequences (B, S + T), padded on the right; labels only where summary and EOS stand."""
        batch = self.inputs([[*feature.input_ids, *feature.target] for feature in features])
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, feature in enumerate(features):
            start = len(feature.input_ids)
            labels[row, start : start + len(feature.target)] = torch.tensor(feature.target)
        return {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each next token, summed over target tokens."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return cross_entropy(
            logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def prompt(self, features: Sequence[Feature]) -> Batch:
        """Article + <sum>, padded on the left: generation goes on from the last token."""
        return self.inputs([feature.input_ids for feature in features], left=True)

    def _skip(self, prompt: Batch) -> int:
        return prompt["input_ids"].shape[1]
