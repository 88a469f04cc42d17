"""The codec of chat models, which generates one text or answer per row by the tokenizer's chat template.

The source is the user's turn, the target the assistant's. Only the source is cut, never the template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from random import Random

from tunegrid.codecs.extract import MAX_QUESTION_TOKENS
from tunegrid.codecs.generate import CausalCodec
from tunegrid.codecs.synthetic import SyntheticTokenizer
from tunegrid.data.conversations import Turn
from tunegrid.data.rows import answer_texts, context, joined
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
