"""The codecs of chat models, which generate one text, answer or reply per row by the tokenizer's chat template.

The source is the user's turn, the target the assistant's; of a conversation, each of its turns. Only the source is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise, takewhile
from random import Random
from typing import Any

from torch import Tensor

from tunegrid.codecs.base import IGNORED, Batch, Feature, SyntheticTokenizer, alphanumeric, integers
from tunegrid.codecs.extract import MAX_QUESTION_TOKENS
from tunegrid.codecs.generate import CausalCodec
from tunegrid.data.rows import Turn, answer_texts, context, joined
from tunegrid.data.sources import Row
from tunegrid.errors import InputError, first_line

SOURCE, TARGET = "@source@", "@target@"  # stand for the two turns while the template is rendered
USER, ASSISTANT = {"role": "user", "content": SOURCE}, {"role": "assistant", "content": TARGET}
# Some templates insert today's date, and training must not depend on the day. They take it as `date_string`, or ask for it
# with `strftime_now`, which a macro of this name replaces.
DAY = date(2025, 1, 1)
_DIRECTIVES = "".join(f".replace('%{name}', '{DAY.strftime(f'%{name}')}')" for name in "dmbBaAyY")
FIXED_DAY = "{% macro strftime_now(format) %}{{ format" + _DIRECTIVES + " }}{% endmacro +%}"
SYNTHETIC_BEFORE, SYNTHETIC_AFTER = 25, 5  # about what SmolLM2's template has, its default system prompt included


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template in tokens.

    Attributes:
        before: tokens up to the user's text, a system prompt included where the template has one by default.
        after: tokens from the end of the user's text to the start of the assistant's.
        lead: spaces between `before` and the user's text; many tokenizers join them with the first word.
        target_lead: the same between `after` and the assistant's text.
        end: the token that ends the assistant's turn.
    """

    before: list[int]
    after: list[int]
    lead: str = ""
    target_lead: str = ""
    end: int


class ChatCodec(CausalCodec):
    """Generation from one user's turn: prefix + source."""

    @cached_property
    def template(self) -> Template:
        """The tokenizer's chat template; for a `SyntheticTokenizer`, random tokens of a plausible length."""
        if isinstance(self.tokenizer, SyntheticTokenizer):
            rng = Random(0)
            before, after = (self.tokenizer.draw(rng, count) for count in (SYNTHETIC_BEFORE, SYNTHETIC_AFTER))
            return Template(before=before, after=after, end=super().end_id)
        start, middle = self._parts(self._rendered([USER]), SOURCE)
        _, closing = self._parts(self._rendered([USER, ASSISTANT]), TARGET)
        before_text, after_text, ends = start.rstrip(" "), middle.rstrip(" "), self.ids(closing.strip())
        return Template(
            before=self.ids(before_text),
            after=self.ids(after_text),
            lead=start.removeprefix(before_text),
            target_lead=middle.removeprefix(after_text),
            end=ends[0] if len(ends) == 1 else super().end_id,  # a template may close the last turn with no token
        )

    def _rendered(self, turns: Sequence[Turn]) -> str:
        """Turns by the template; behind a user's, up to where the assistant begins."""
        try:
            template: str = self.tokenizer.get_chat_template()
            rendered: str = self.tokenizer.apply_chat_template(
                list(turns),
                chat_template=(FIXED_DAY if "strftime_now" in template else "") + template,
                tokenize=False,
                add_generation_prompt=turns[-1]["role"] == "user",
                date_string=DAY.strftime("%d %b %Y"),
                enable_thinking=False,  # the target follows the prompt at once
            )
        except Exception as error:  # no template, or one that refuses: jinja raises what it likes
            raise InputError(
                f"{self.cell.id} needs a chat template: that of {self.cell.backbone.checkpoint} cannot render a user's and "
                f"an assistant's turn ({first_line(error)}); take an instruct checkpoint, or Layout.SEPARATED"
            ) from None
        return rendered

    def _parts(self, rendered: str, marker: str) -> tuple[str, str]:
        if rendered.count(marker) != 1:
            raise InputError(
                f"{self.cell.id}: the chat template of {self.cell.backbone.checkpoint} shows a turn "
                f"{rendered.count(marker)} times, so source and target cannot be told apart"
            )
        before, _, after = rendered.partition(marker)
        return before, after

    def around(self) -> tuple[list[int], list[int]]:
        """The template's tokens before and after the user's text."""
        return self.template.before, self.template.after

    @property
    def lead(self) -> str:
        """Spaces that the template puts before the assistant's text."""
        return self.template.target_lead

    @property
    def end_id(self) -> int:
        """The token that ends the assistant's turn."""
        return self.template.end

    def text(self, row: Row) -> str:
        """The user's turn, with the template's spaces before it; many templates strip what is around a turn."""
        return self.template.lead + super().text(row).strip()

    def target_text(self, row: Row) -> str:
        """The assistant's turn."""
        return super().target_text(row).strip()

    def frame(self) -> tuple[list[int], list[int]]:
        """The template and the prefix; the prefix's last token may merge with the text and is left out."""
        prefix = self.recipe.prefix.strip()
        return [*self.before, *(self.ids(self.template.lead + prefix)[:-1] if prefix else [])], self.after


class ChatAnswerCodec(ChatCodec):
    """Answers to questions as generated text. The user's turn: prefix + context, a blank line, the question.

    Every row trains, also one whose answer is cut away with its context. A span codec leaves such a row out because it has
    no place to point at; a generated answer always has its text, and scored rows are cut in the same way. So the training
    rows do not depend on `max_length`.
    """

    def sources(self, rows: Sequence[Row]) -> list[list[int]]:
        """Prompt tokens per row; the context is cut until the question fits behind it, up to 64 tokens of the question."""
        return [self._prompt(row) for row in rows]

    def _prompt(self, row: Row) -> list[int]:
        question = self._cut(joined(row, self.cell.text).strip(), MAX_QUESTION_TOKENS)
        passage = self.template.lead + (self.recipe.prefix + context(self.task, row)).strip()
        tokens, kept = self.ids(f"{passage}\n\n{question}"), len(self.ids(passage))
        while len(tokens) > self.room and kept:
            kept = max(0, kept - (len(tokens) - self.room))
            tokens = self.ids(f"{self._cut(passage, kept)}\n\n{question}")
        return self.framed(tokens)

    def _cut(self, text: str, count: int) -> str:
        """The text up to the end of so many tokens: cut as text, it is tokenised as any other."""
        [offsets] = self.tokenized([text], return_offsets_mapping=True)["offset_mapping"]
        return text[: offsets[:count][-1][1]] if count and offsets else ""

    def target_text(self, row: Row) -> str:
        """The first annotated answer."""
        return answer_texts(self.task, row)[0].strip()


Piece = tuple[list[int], bool]  # tokens, and whether they are learned


class ConversationCodec(ChatCodec):
    """Every turn of the assistant is learned; the last one (`reply`) is generated.

    A long conversation loses its oldest turns, then the end of the prompt; never the template, nor what the system says.
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
