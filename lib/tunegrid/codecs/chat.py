"""Codecs for chat models, which render each row as a conversation with the chat template.

The assistant's turns are learned. If a task has no conversations, each row is a single exchange:
the source is the user's turn, and the target is the assistant's turn.
"""

from collections.abc import Sequence
from datetime import date
from functools import cached_property
from itertools import pairwise, takewhile
from random import Random
from typing import NamedTuple

from torch import Tensor

from tunegrid.codecs.base import IGNORED, Batch, Feature, SyntheticTokenizer, alphanumeric, integers
from tunegrid.codecs.extract import MAX_QUESTION_TOKENS
from tunegrid.codecs.generate import CausalCodec
from tunegrid.data.sources import Row, answer_texts, context, stitch
from tunegrid.errors import InputError, first_line

# Some templates insert today's date, but training must not depend on the day. They take the date as
# `date_string` or call `strftime_now`, which a macro of that name replaces.
DAY = date(2025, 1, 1)
_DIRECTIVES = "".join(f".replace('%{name}', '{DAY.strftime(f'%{name}')}')" for name in "dmbBaAyY")
FIXED_DAY = "{% macro strftime_now(format) %}{{ format" + _DIRECTIVES + " }}{% endmacro +%}"
SYNTHETIC_BEFORE = 25  # about as many tokens as SmolLM2's template with its default system prompt
SYNTHETIC_AFTER = 5  # likewise
Piece = tuple[list[int], bool]  # tokens, and whether they are learned


class Surrounding(NamedTuple):
    """Template text next to a turn, its token `ids`, and the `spaces` after the text."""

    text: str
    ids: list[int]
    spaces: str


class ChatCodec(CausalCodec):
    """Trains on every assistant turn; in evaluation, generates only the last turn.

    A long conversation loses its oldest turns, then the end of the prompt, but never the template
    or the system turn. A feature's `extra` holds the spans (start, end) of its learned input
    tokens.
    """

    def _frames(self, roles: tuple[str, ...]) -> list[Surrounding]:
        """The template's text before each turn and after the last, for turns of these roles.

        Raises InputError if the template cannot render these turns, or does not show every turn
        exactly once.
        """
        if roles in self._cache:
            return self._cache[roles]
        marks = [f"@turn {number}@" for number in range(len(roles))]
        pairs = zip(roles, marks, strict=True)
        turns = [{"role": role, "content": mark} for role, mark in pairs]
        name = self.cell.backbone.checkpoint
        try:
            template: str = self.tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = FIXED_DAY + template
            text: str = self.tokenizer.apply_chat_template(
                turns,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=roles[-1] == "user",
                date_string=DAY.strftime("%d %b %Y"),
                enable_thinking=False,  # the target follows the prompt immediately
            )
        except Exception as error:  # no template, or a template that rejects turns with any error
            raise InputError(
                f"{self.cell.id} needs a chat template: that of {name} cannot render "
                f"a user's and an assistant's turn ({first_line(error)}); "
                "take an instruct checkpoint, or Layout.SEPARATED"
            ) from None
        texts: list[str] = []
        for mark in marks:
            count = text.count(mark)
            if count != 1:
                raise InputError(
                    f"{self.cell.id}: the chat template of {name} shows a turn {count} times, "
                    "so source and target cannot be told apart"
                )
            before, _, text = text.partition(mark)
            texts.append(before)
        texts.append(text)
        words = [text.rstrip(" ") for text in texts]
        frames = []
        for text, word, ids in zip(texts, words, self.to_ids(words), strict=True):
            frames.append(Surrounding(word, ids, text[len(word) :]))
        self._cache[roles] = frames
        return frames

    @cached_property
    def _cache(self) -> dict[tuple[str, ...], list[Surrounding]]:
        return {}

    def affixes(self) -> tuple[list[int], list[int]]:
        """The template's tokens around the user's text; random for a `SyntheticTokenizer`."""
        if isinstance(self.tokenizer, SyntheticTokenizer):
            rng = Random(0)
            start = self.tokenizer.draw(rng, SYNTHETIC_BEFORE)
            return start, self.tokenizer.draw(rng, SYNTHETIC_AFTER)
        before, after = self._frames(("user",))
        return before.ids, after.ids

    @cached_property
    def end_id(self) -> int:
        """The id of the token that ends the assistant's turn.

        If the template ends the turn with no token or several, the tokenizer's end token is used.
        """
        if isinstance(self.tokenizer, SyntheticTokenizer):
            return super().end_id
        ends = self.ids(self._frames(("user", "assistant"))[-1].text.strip())
        return ends[0] if len(ends) == 1 else super().end_id

    @cached_property
    def lead(self) -> str:  # type: ignore[override]
        """The spaces that the template puts before the assistant's text."""
        return self._frames(("user",))[1].spaces

    def text(self, row: Row) -> str:
        """The user's turn, stripped, because many templates strip turns."""
        return super().text(row).strip()

    def target_text(self, row: Row) -> str:
        """The assistant's turn, stripped, because many templates strip turns."""
        return super().target_text(row).strip()

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature per row; its `input_ids` are the conversation up to the target."""
        features: list[Feature] = []
        for row, answer in zip(rows, self.answers(rows), strict=True):
            ids: list[int] = []
            spans: list[list[int]] = []
            for tokens, is_learned in self._fit_turns(row):
                if is_learned:
                    spans.append([len(ids), len(ids) + len(tokens)])
                ids += tokens
            feature = Feature(example=len(features), input_ids=ids, target=answer, extra=spans)
            features.append(feature)
        return features

    def _fit_turns(self, row: Row) -> list[Piece]:
        """The conversation up to the target, shortened so that the longest target also fits."""
        room = self.recipe.max_length - self.max_target_length
        history = row["history"] if self.task.messages else []
        system = [turn for turn in history if turn["role"] == "system"]
        turns = [(turn["role"], turn["content"].strip()) for turn in history]
        while True:
            pieces = self._pieces([*turns, ("user", self.text(row))])
            excess = sum(len(tokens) for tokens, _ in pieces) - room
            if excess <= 0:
                return pieces
            if len(turns) == len(system):
                *start, (prompt, _), end = pieces
                return [*start, (prompt[: max(0, len(prompt) - excess)], False), end]
            del turns[len(system) : len(system) + 2]  # a user turn and its reply

    def _pieces(self, turns: Sequence[tuple[str, str]]) -> list[Piece]:
        """The tokens of the template and the turns, in order.

        Each piece has a flag for whether it is trained on; only assistant turns are.
        """
        roles = tuple(role for role, _ in turns)
        frames = self._frames(roles)
        pieces: list[Piece] = [(frames[0].ids, False)]
        for (role, content), (before, after) in zip(turns, pairwise(frames), strict=True):
            is_learned = role == "assistant"
            ends = int(is_learned and after.ids[:1] == [self.end_id])
            tokens = self.ids(before.spaces + content) + after.ids[:ends]
            pieces.append((tokens, is_learned))
            pieces.append((after.ids[ends:], False))
        return pieces

    def frame(self) -> tuple[list[int], list[int]]:
        """The template's tokens around an input, and the prefix except its last token.

        The prefix's last token may merge with the text. For conversations, the opening is only the
        text that the template writes whether or not there is a system turn.
        """
        if self.task.messages:
            openings = (self._frames(roles)[0].ids for roles in (("system", "user"), ("user",)))
            shared_tokens = takewhile(lambda pair: pair[0] == pair[1], zip(*openings, strict=False))
            return [token for token, _ in shared_tokens], self.after
        prefix = self.recipe.prefix.strip()
        if not prefix:
            return [*self.before], self.after
        tokens = self.ids(self._frames(("user",))[0].spaces + prefix)
        return self.before + tokens[:-1], self.after

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Whole conversations (B, S + T); only the assistant's tokens have labels."""
        batch = super().collate(features)
        for labels, feature in zip(batch["labels"], features, strict=True):
            for start, end in feature.extra or ():
                labels[start:end] = integers(feature.input_ids[start:end])
        return batch

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Checks whether the labels are the last replies in `history`, followed by the target."""
        start = len(feature.input_ids)
        history = row["history"] if self.task.messages else []
        ignored = (IGNORED, self.end_id)
        history_tokens = [token for token in label[:start].tolist() if token not in ignored]
        replies = "".join(turn["content"] for turn in history if turn["role"] == "assistant")
        if not alphanumeric(replies).endswith(alphanumeric(self.tokenizer.decode(history_tokens))):
            return False
        return super().label_is_target(row, feature, label[start:])


class ChatAnswerCodec(ChatCodec):
    """Generates answers; the user's turn is prefix + context, a blank line and the question.

    Every row is used in training, even if truncation removes the answer from the context.
    `ExtractCodec` drops such a row because it has no span to learn. A generated answer always has
    its text, though, and scored rows are truncated in the same way.
    """

    def text(self, row: Row) -> str:
        """The context and the question's first 64 tokens, with the context truncated to fit."""
        question = self._cut(stitch(row, self.cell.text).strip(), MAX_QUESTION_TOKENS)
        lead = self._frames(("user",))[0].spaces
        passage = lead + (self.recipe.prefix + context(self.task, row)).strip()
        text = f"{passage}\n\n{question}"
        count = len(self.ids(passage))
        while count:
            excess = len(self.ids(text)) - self.room
            if excess <= 0:
                break
            count = max(0, count - excess)
            text = f"{self._cut(passage, count)}\n\n{question}"
        return text.removeprefix(lead)

    def _cut(self, text: str, count: int) -> str:
        """The part of a text that its first `count` tokens cover."""
        [offsets] = self.encode_texts([text], return_offsets_mapping=True)["offset_mapping"]
        if not count or not offsets:
            return ""
        _, end = offsets[:count][-1]
        return text[:end]

    def target_text(self, row: Row) -> str:
        """The first annotated answer, stripped."""
        return answer_texts(self.task, row)[0].strip()
