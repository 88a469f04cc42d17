"""A report: sections of a heading, a table and sentences; prints it as text, Markdown, LaTeX, HTML or JSON.

Whoever has something to show makes sections. What a file, a model or a library wrote has no effect as markup in any format.
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
MARKUP = re.compile(r"[\\`$*|<>\[\]~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # of Markdown

BACKSLASH, TILDE, CARET = r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"
LATEX = str.maketrans({"\\": BACKSLASH, "~": TILDE, "^": CARET} | {letter: f"\\{letter}" for letter in "&%$#_{}"})


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table with what is said of it."""

    heading: str = ""
    frame: "pd.DataFrame | None" = None
    formats: Mapping[str, str] = field(default_factory=dict)  # of columns of numbers, as ".1f": they are aligned to the right
    sentences: Sequence[str] = ()  # commands stand in backticks
    folded: bool = False  # whether formats that can do so show it on a click alone

    @property
    def columns(self) -> list[str]:
        """The table's head; empty without one."""
        return [] if self.frame is None or self.frame.empty else list(map(str, self.frame.columns))

    @property
    def cells(self) -> list[list[str]]:
        """The table's lines as text; a dash if nothing was measured."""
        forms = [self.formats.get(name, "") for name in self.columns]
        rows = self.frame.itertuples(index=False) if self.frame is not None and forms else ()
        return [[show(one, form) for one, form in zip(row, forms, strict=True)] for row in rows]


def show(value: Any, form: str = "") -> str:
    """A figure or a text; yes or no for a boolean, a dash for None and NaN."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None or value != value else format(value, form) if form else str(value)


def text(sections: Iterable[Section]) -> str:
    """For a terminal, which obeys nothing in it."""
    parts = [[section.heading, *text_table(section), *section.sentences] for section in sections]
    return "\n\n".join(filter(None, ("\n".join(map(defuse, filter(None, lines))) for lines in parts)))


def text_table(section: Section) -> list[str]:
    """The head, then one line per row; numbers are aligned to the right."""
    table = [list(map(defuse, row)) for row in (section.columns, *section.cells)] if section.cells else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = [">" if name in section.formats else "<" for name in section.columns]
    forms = [f"{side}{width}" for side, width in zip(sides, widths, strict=True)]
    return ["  ".join(map(format, row, forms)).rstrip() for row in table]


def markdown(sections: Iterable[Section]) -> str:
    """For a pull request or a step summary."""
    parts = []
    for section in sections:
        if section.folded:
            parts.append(f"<details><summary>{html.escape(_one_line(section.heading))}</summary>")
        elif section.heading:
            parts.append(f"**{_markdown(section.heading)}**")
        if section.cells:
            rule = ["---:" if name in section.formats else "---" for name in section.columns]
            head, *rows = [list(map(_markdown, row)) for row in (section.columns, *section.cells)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)))
        parts += ["\n".join(f"* {mark_code(one, _markdown, '`{}`')}" for one in section.sentences)] if section.sentences else []
        parts += ["</details>"] if section.folded else []
    return "\n\n".join(parts)


def _markdown(words: str) -> str:
    """Text as Markdown that shows it, on one line."""
    return MARKUP.sub(r"\\\g<0>", _one_line(words))


def _one_line(words: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in words)


def mark_code(sentence: str, escaped: Callable[[str], str], code: str) -> str:
    """A sentence of ours, escaped, but for commands in backticks, which are made `code`; one that is not closed is text."""
    parts = _one_line(sentence).split("`")
    if len(parts) % 2 == 0 or not all(part.strip() for part in parts[1::2]):
        return escaped(sentence)
    return "".join(code.format(part) if index % 2 else escaped(part) for index, part in enumerate(parts))


def latex(sections: Iterable[Section]) -> str:
    """For a paper: a float for each table, with the rules of booktabs."""
    parts = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        heading, *notes = map(_latex, (section.heading, *section.sentences))
        if section.cells:
            head, *rows = [" & ".join(map(_latex, row)) + r" \\" for row in (section.columns, *section.cells)]
            sides = "".join("r" if name in section.formats else "l" for name in section.columns)
            table = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
            parts.append("\n".join([r"\begin{table}", rf"\caption{{{heading}}}", *table, *notes, r"\end{table}"]))
        else:
            parts.append("\n".join([rf"\paragraph{{{heading}}}", *notes]))
    return "\n\n".join(parts)


def _latex(words: str) -> str:
    return _one_line(words).translate(LATEX)


def render_html(sections: Iterable[Section]) -> str:
    """Headings, tables and paragraphs for a page of your own."""
    parts = []
    for section in sections:
        parts += [f"<h3>{_html(section.heading)}</h3>"] if section.heading else []
        if section.cells:
            rows = (f"<tr>{''.join(f'<td>{_html(one)}</td>' for one in row)}</tr>" for row in section.cells)
            head = "".join(f"<th>{_html(name)}</th>" for name in section.columns)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
        parts += [f"<p>{mark_code(sentence, _html, Markup('<code>{}</code>'))}</p>" for sentence in section.sentences]
    return "\n".join(parts)


def _html(words: str) -> str:
    return html.escape(defuse(words))


def render_json(sections: Iterable[Section]) -> str:
    """Each section with the values of its table, not rounded; null if nothing was measured."""
    parts = []
    for section in sections:
        frame = section.frame
        rows = [] if frame is None else frame.astype(object).where(frame.notna(), None).to_dict("records")
        parts.append({"heading": section.heading, "rows": rows, "sentences": list(section.sentences)})
    return json.dumps(parts, indent=1)


FORMATS = {"text": text, "markdown": markdown, "latex": latex, "html": render_html, "json": render_json}
