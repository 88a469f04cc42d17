"""The codec of conversations: turns by the tokenizer's chat template, of which those of the assistant are learned.

A row has the turns before (`history`), the user's last one (`prompt`) and the assistant's answer to it (`reply`), which is what
a trained model generates. A long conversation loses its oldest turns, then the end of the prompt; never the template, nor what
the system says.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

from torch import Tensor

from tunegrid.codecs.base import IGNORED, Batch, Feature, alphanumeric, integers
from tunegrid.codecs.chat import ChatCodec
from tunegrid.data.conversations import Turn
from tunegrid.data.sources import Row

Piece = tuple[list[int], bool]  # tokens, and whether they are learned


class ConversationCodec(ChatCodec):
    """Every turn of the assistant is learned; the last one is generated.

    A feature's `extra` are the places (start, end) of learned tokens in its input.
    """

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row: its input_ids are the conversation up to the reply, its target the reply's tokens."""
        pairs = zip(rows, self.answers(rows), strict=True)
        return [self._feature(i, row, answer) for i, (row, answer) in enumerate(pairs)]

    def _feature(self, example: int, row: Row, answer: list[int]) -> Feature:
        pieces, ids, learned = self._fitting(row), list[int](), list[tuple[int, int]]()
        for tokens, is_learned in pieces:
            learned += [(len(ids), len(ids) + len(tokens))] if is_learned else []
            ids += tokens
        return Feature(example=example, input_ids=ids, target=answer, extra=learned)

    def _fitting(self, row: Row) -> list[Piece]:
        """The conversation, as much as fits beside the longest reply."""
        most, history = self.recipe.max_length - self.max_target_length, row["history"]
        system = [turn for turn in history if turn["role"] == "system"]
        turns = history[len(system) :]
        while True:
            pieces = self._pieces([*system, *turns, {"role": "user", "content": self.text(row)}])
            excess = sum(len(tokens) for tokens, _ in pieces) - most
            if excess <= 0:
                return pieces
            if not turns:
                *start, (prompt, _), end = pieces
                return [*start, (prompt[: max(0, len(prompt) - excess)], False), end]
            turns = turns[2:]  # a user's and the answer to it

    def _pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The template's parts and the turns between them."""
        around = self._around(tuple(turn["role"] for turn in turns))
        pieces: list[Piece] = [(around[0][0], False)]
        for turn, ((_, lead), (after, _)) in zip(turns, pairwise(around), strict=True):
            learned = turn["role"] == "assistant"
            ends = int(learned and after[:1] == [self.end_id])
            pieces.append(([*self.ids(lead + turn["content"].strip()), *after[:ends]], learned))
            pieces.append((after[ends:], False))
        return pieces

    @cached_property
    def _known(self) -> dict[tuple[str, ...], list[tuple[list[int], str]]]:
        return {}

    def _around(self, roles: tuple[str, ...]) -> list[tuple[list[int], str]]:
        """The template's tokens before each turn of these roles and behind the last, each with the spaces that follow."""
        if roles not in self._known:
            marks = [f"@turn {number}@" for number in range(len(roles))]
            rest = self._rendered([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
            texts = list[str]()
            for mark in marks:
                text, rest = self._parts(rest, mark)
                texts.append(text)
            cut = [(text.rstrip(" "), text) for text in (*texts, rest)]
            self._known[roles] = [(self.ids(bare), text.removeprefix(bare)) for bare, text in cut]
        return self._known[roles]

    def frame(self) -> tuple[list[int], list[int]]:
        """What the template opens with whether or not a system speaks first, and what it has behind the prompt."""
        with_system, without = (self._around(roles)[0][0] for roles in (("system", "user"), ("user",)))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(with_system, without, strict=False))
        return [token for token, _ in same], self.after

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Whole conversations (B, S + T); labels where the assistant speaks."""
        batch = super().collate(features)
        for labels, feature in zip(batch["labels"], features, strict=True):
            for start, end in feature.extra or ():
                labels[start:end] = integers(feature.input_ids[start:end])
        return batch

    def packed(self, feature: Feature) -> tuple[list[int], list[int]]:
        """The reply's tokens; starts and ends of the turns that are learned before it."""
        return feature.target, [place for span in feature.extra for place in span]

    def restored(self, target: list[int], extra: list[int]) -> dict[str, Any]:
        """The reply's tokens; starts and ends of the turns that are learned before it."""
        return {"target": target, "extra": list(zip(extra[::2], extra[1::2], strict=True))}

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """The counted labels are the last of the assistant's turns in `history`, then the reply."""
        start = len(feature.input_ids)
        earlier = [token for token in label[:start].tolist() if token not in (IGNORED, self.end_id)]
        said = "".join(turn["content"] for turn in row["history"] if turn["role"] == "assistant")
        whole = alphanumeric(said).endswith(alphanumeric(self.tokenizer.decode(earlier)))
        reply = label.clone()
        reply[:start] = IGNORED
        return whole and super().label_is_target(row, feature, reply)
