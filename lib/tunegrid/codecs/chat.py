"""The codecs of chat models: a row is a conversation by the tokenizer's chat template, and the assistant's turns are learned.

Where a task has no conversations, a row is one exchange: the source is the user's turn, the target the assistant's.
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

# Some templates insert today's date, and training must not depend on the day. They take it as `date_string`, or ask for it
# with `strftime_now`, which a macro of this name replaces.
DAY = date(2025, 1, 1)
_DIRECTIVES = "".join(f".replace('%{name}', '{DAY.strftime(f'%{name}')}')" for name in "dmbBaAyY")
FIXED_DAY = "{% macro strftime_now(format) %}{{ format" + _DIRECTIVES + " }}{% endmacro +%}"
SYNTHETIC_BEFORE, SYNTHETIC_AFTER = 25, 5  # about what SmolLM2's template has, its default system prompt included
Piece = tuple[list[int], bool]  # tokens, and whether they are learned


class Surrounding(NamedTuple):
    """A template's text between two turns, its tokens, and the spaces behind it, which tokenizers join with the next word."""

    text: str
    ids: list[int]
    spaces: str


class ChatCodec(CausalCodec):
    """Every turn of the assistant is learned; the last one is generated.

    A long conversation loses its oldest turns, then the end of the prompt; never the template, nor what the system says.
    A feature's `extra` are the places (start, end) of learned tokens in its input.
    """

    def _frames(self, roles: tuple[str, ...]) -> list[Surrounding]:
        """What the template puts before each turn of these roles and behind the last one.

        Raises InputError for a template that cannot render these turns, or shows one of them twice.
        """
        if roles in self._cache:
            return self._cache[roles]
        marks, name = [f"@turn {number}@" for number in range(len(roles))], self.cell.backbone.checkpoint
        try:
            template: str = self.tokenizer.get_chat_template()
            rest: str = self.tokenizer.apply_chat_template(
                [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)],
                chat_template=(FIXED_DAY if "strftime_now" in template else "") + template,
                tokenize=False,
                add_generation_prompt=roles[-1] == "user",
                date_string=DAY.strftime("%d %b %Y"),
                enable_thinking=False,  # the target follows the prompt at once
            )
        except Exception as error:  # no template, or one that refuses: jinja raises what it likes
            raise InputError(
                f"{self.cell.id} needs a chat template: that of {name} cannot render a user's and an assistant's turn "
                f"({first_line(error)}); take an instruct checkpoint, or Layout.SEPARATED"
            ) from None
        texts = list[str]()
        for mark in marks:
            if (count := rest.count(mark)) != 1:
                raise InputError(
                    f"{self.cell.id}: the chat template of {name} shows a turn {count} times, so source and target cannot be "
                    "told apart"
                )
            text, _, rest = rest.partition(mark)
            texts.append(text)
        words = [text.rstrip(" ") for text in (*texts, rest)]
        spaces = [text[len(word) :] for text, word in zip((*texts, rest), words, strict=True)]
        self._cache[roles] = list(map(Surrounding, words, self.to_ids(words), spaces))
        return self._cache[roles]

    @cached_property
    def _cache(self) -> dict[tuple[str, ...], list[Surrounding]]:
        return {}

    def affixes(self) -> tuple[list[int], list[int]]:
        """The template's tokens before and after the user's text; for a `SyntheticTokenizer`, random ones."""
        if isinstance(self.tokenizer, SyntheticTokenizer):
            rng = Random(0)
            return self.tokenizer.draw(rng, SYNTHETIC_BEFORE), self.tokenizer.draw(rng, SYNTHETIC_AFTER)
        before, after = self._frames(("user",))
        return before.ids, after.ids

    @cached_property
    def end_id(self) -> int:
        """The token that ends the assistant's turn; the tokenizer's own if the template has not exactly one there."""
        synthetic = isinstance(self.tokenizer, SyntheticTokenizer)
        ends = [] if synthetic else self.ids(self._frames(("user", "assistant"))[-1].text.strip())
        return ends[0] if len(ends) == 1 else super().end_id

    @cached_property
    def lead(self) -> str:  # type: ignore[override]
        """Spaces that the template puts before the assistant's text."""
        return self._frames(("user",))[1].spaces

    def text(self, row: Row) -> str:
        """The user's turn; many templates strip what is around a turn."""
        return super().text(row).strip()

    def target_text(self, row: Row) -> str:
        """The assistant's turn."""
        return super().target_text(row).strip()

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row: its input_ids are the conversation up to the target."""
        features = []
        for example, (row, answer) in enumerate(zip(rows, self.answers(rows), strict=True)):
            ids, learned_spans = list[int](), list[list[int]]()
            for tokens, is_learned in self._fit_turns(row):
                learned_spans += [[len(ids), len(ids) + len(tokens)]] if is_learned else []
                ids += tokens
            features.append(Feature(example=example, input_ids=ids, target=answer, extra=learned_spans))
        return features

    def _fit_turns(self, row: Row) -> list[Piece]:
        """The conversation, as much as fits beside the longest target."""
        history = row["history"] if self.task.messages else []
        system = [turn for turn in history if turn["role"] == "system"]
        turns = [(turn["role"], turn["content"].strip()) for turn in history]
        while True:
            pieces = self._pieces([*turns, ("user", self.text(row))])
            excess = sum(len(tokens) for tokens, _ in pieces) - (self.recipe.max_length - self.max_target_length)
            if excess <= 0:
                return pieces
            if len(turns) == len(system):
                *start, (prompt, _), end = pieces
                return [*start, (prompt[: max(0, len(prompt) - excess)], False), end]
            del turns[len(system) : len(system) + 2]  # a user's and the answer to it

    def _pieces(self, turns: Sequence[tuple[str, str]]) -> list[Piece]:
        """The template's parts and the turns between them."""
        roles = tuple(role for role, _ in turns)
        frames = self._frames(roles)
        pieces: list[Piece] = [(frames[0].ids, False)]
        for (role, content), (before, after) in zip(turns, pairwise(frames), strict=True):
            is_learned = role == "assistant"
            ends = int(is_learned and after.ids[:1] == [self.end_id])
            pieces += [([*self.ids(before.spaces + content), *after.ids[:ends]], is_learned), (after.ids[ends:], False)]
        return pieces

    def frame(self) -> tuple[list[int], list[int]]:
        """The template and the prefix; the prefix's last token may merge with the text and is left out.

        Of conversations, what the template opens with whether or not a system speaks first.
        """
        if self.task.messages:
            openings = (self._frames(roles)[0].ids for roles in (("system", "user"), ("user",)))
            shared_tokens = takewhile(lambda pair: pair[0] == pair[1], zip(*openings, strict=False))
            return [token for token, _ in shared_tokens], self.after
        prefix = self.recipe.prefix.strip()
        return [*self.before, *(self.ids(self._frames(("user",))[0].spaces + prefix)[:-1] if prefix else [])], self.after

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Whole conversations (B, S + T); labels where the assistant speaks."""
        batch = super().collate(features)
        for labels, feature in zip(batch["labels"], features, strict=True):
            for start, end in feature.extra or ():
                labels[start:end] = integers(feature.input_ids[start:end])
        return batch

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """The counted labels are the last of the assistant's turns in `history`, then the target."""
        start, history = len(feature.input_ids), row["history"] if self.task.messages else []
        history_tokens = [token for token in label[:start].tolist() if token not in (IGNORED, self.end_id)]
        replies = "".join(turn["content"] for turn in history if turn["role"] == "assistant")
        if not alphanumeric(replies).endswith(alphanumeric(self.tokenizer.decode(history_tokens))):
            return False
        return super().label_is_target(row, feature, label[start:])


class ChatAnswerCodec(ChatCodec):
    """Answers to questions as generated text. The user's turn: prefix + context, a blank line, the question.

    Every row trains, also one whose answer is cut away with its context. A span codec leaves such a row out because it has
    no place to point at; a generated answer always has its text, and scored rows are cut in the same way. So the training
    rows do not depend on `max_length`.
    """

    def text(self, row: Row) -> str:
        """The context is cut until the question fits behind it, up to 64 tokens of the question."""
        question, lead = self._cut(stitch(row, self.cell.text).strip(), MAX_QUESTION_TOKENS), self._frames(("user",))[0].spaces
        passage = lead + (self.recipe.prefix + context(self.task, row)).strip()
        text, count = f"{passage}\n\n{question}", len(self.ids(passage))
        while count and (excess := len(self.ids(text)) - self.room) > 0:
            count = max(0, count - excess)
            text = f"{self._cut(passage, count)}\n\n{question}"
        return text.removeprefix(lead)

    def _cut(self, text: str, count: int) -> str:
        """The text up to the end of so many tokens: cut as text, it is tokenised as any other."""
        [offsets] = self.encode_texts([text], return_offsets_mapping=True)["offset_mapping"]
        return text[: offsets[:count][-1][1]] if count and offsets else ""

    def target_text(self, row: Row) -> str:
        """The first annotated answer."""
        return answer_texts(self.task, row)[0].strip()
