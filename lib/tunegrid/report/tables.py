"""Renders reports, made of sections, as text, Markdown, LaTeX, HTML or JSON.

Text that comes from files, models or libraries never acts as markup in any format.
"""

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tunegrid.terminal import defuse

if TYPE_CHECKING:
    import pandas as pd

MISSING = "-"
MARKUP = re.compile(r"[\\`$*|<>\[\]~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # in Markdown

ESCAPES = {letter: f"\\{letter}" for letter in "&%$#_{}"}
ESCAPES |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
LATEX = str.maketrans(ESCAPES)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a table and sentences, each optional."""

    heading: str = ""
    frame: "pd.DataFrame | None" = None
    # Formats such as ".1f" of number columns, which are aligned to the right
    formats: Mapping[str, str] = field(default_factory=dict)
    sentences: Sequence[str] = ()  # may hold commands in backticks
    folded: bool = False  # hidden until clicked, in formats that support it

    @property
    def columns(self) -> list[str]:
        """The table's column names; empty without a table."""
        if self.frame is None or self.frame.empty:
            return []
        return list(map(str, self.frame.columns))

    @property
    def cells(self) -> list[list[str]]:
        """The table's rows as text, with a dash for each missing figure."""
        forms = [self.formats.get(name, "") for name in self.columns]
        if self.frame is None or not forms:
            return []
        return [list(map(show, row, forms)) for row in self.frame.itertuples(index=False)]


def show(value: Any, form: str = "") -> str:
    """Formats a value: booleans as yes or no, None and NaN as a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:
        return MISSING
    return format(value, form) if form else str(value)


def text(sections: Iterable[Section]) -> str:
    """The report for a terminal, with control characters and CI commands neutralized."""
    paragraphs = []
    for section in sections:
        lines = filter(None, [section.heading, *text_table(section), *section.sentences])
        paragraphs.append("\n".join(map(defuse, lines)))
    return "\n\n".join(filter(None, paragraphs))


def text_table(section: Section) -> list[str]:
    """The table's header line and one line per row; numbers are aligned to the right."""
    if not section.cells:
        return []
    table = [list(map(defuse, row)) for row in (section.columns, *section.cells)]
    forms = []
    for name, *column in zip(section.columns, *table, strict=True):
        side = ">" if name in section.formats else "<"
        forms.append(f"{side}{max(map(len, column))}")
    return ["  ".join(map(format, row, forms)).rstrip() for row in table]


def markdown(sections: Iterable[Section]) -> str:
    """The report in Markdown for a pull request or a step summary."""
    blocks = []
    for section in sections:
        if section.folded:
            summary = html.escape(_one_line(section.heading))
            blocks.append(f"<details><summary>{summary}</summary>")
        elif section.heading:
            blocks.append(f"**{_markdown(section.heading)}**")
        if section.cells:
            head, *rows = [list(map(_markdown, row)) for row in (section.columns, *section.cells)]
            rule = ["---:" if name in section.formats else "---" for name in section.columns]
            blocks.append("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)))
        sentences = [mark_code(sentence, _markdown, "`{}`") for sentence in section.sentences]
        if sentences:
            blocks.append("\n".join(f"* {sentence}" for sentence in sentences))
        if section.folded:
            blocks.append("</details>")
    return "\n\n".join(blocks)


def _markdown(words: str) -> str:
    """Escapes text for Markdown and puts it on one line."""
    return MARKUP.sub(r"\\\g<0>", _one_line(words))


def _one_line(words: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in words)


def mark_code(sentence: str, escaped: Callable[[str], str], code: str) -> str:
    """Escapes a sentence and inserts its commands in backticks into the template `code`.

    If a backtick is not closed or encloses nothing, the whole sentence is plain text.
    """
    parts = _one_line(sentence).split("`")
    if len(parts) % 2 == 0 or not all(map(str.strip, parts[1::2])):
        return escaped(sentence)
    for index, words in enumerate(parts):
        parts[index] = code.format(words) if index % 2 else escaped(words)
    return "".join(parts)


def latex(sections: Iterable[Section]) -> str:
    """The report in LaTeX for a paper; each table is a float with booktabs rules."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        heading, *notes = map(_latex, (section.heading, *section.sentences))
        if not section.cells:
            blocks.append("\n".join([rf"\paragraph{{{heading}}}", *notes]))
            continue
        rows = []
        for row in (section.columns, *section.cells):
            rows.append(" & ".join(map(_latex, row)) + r" \\")
        sides = ["r" if name in section.formats else "l" for name in section.columns]
        lines = [
            r"\begin{table}",
            rf"\caption{{{heading}}}",
            rf"\begin{{tabular}}{{{''.join(sides)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _latex(words: str) -> str:
    return _one_line(words).translate(LATEX)


def render_html(sections: Iterable[Section]) -> str:
    """The report as an HTML fragment of headings, tables and paragraphs."""
    blocks = []
    for section in sections:
        if section.heading:
            blocks.append(f"<h3>{_html(section.heading)}</h3>")
        if section.cells:
            head = _html_row("th", section.columns)
            body = "".join(_html_row("td", row) for row in section.cells)
            blocks.append(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")
        for sentence in section.sentences:
            blocks.append(f"<p>{mark_code(sentence, _html, Markup('<code>{}</code>'))}</p>")
    return "\n".join(blocks)


def _html_row(tag: str, values: Sequence[str]) -> str:
    """An HTML table row."""
    return f"<tr>{''.join(f'<{tag}>{_html(value)}</{tag}>' for value in values)}</tr>"


def _html(words: str) -> str:
    return html.escape(defuse(words))


def render_json(sections: Iterable[Section]) -> str:
    """The report in JSON, with unrounded table values and null for missing figures."""
    objects = []
    for section in sections:
        frame = section.frame
        rows = []
        if frame is not None:
            rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        objects.append(
            {"heading": section.heading, "rows": rows, "sentences": [*section.sentences]}
        )
    return json.dumps(objects, indent=1)


FORMATS = {
    "text": text,
    "markdown": markdown,
    "latex": latex,
    "html": render_html,
    "json": render_json,
}
