"""Text that readers see: tables in three formats, and numbers and names in words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 3  # names that a sentence shows


def count(number: int, noun: str) -> str:
    """As in "1 cell" and "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def out_of(number: int, total: int, noun: str) -> str:
    """As in "3 of 27 cells"; of one in all, "the one cell"."""
    return f"the one {noun}" if number == total == 1 else f"{number} of {count(total, noun)}"


def joined(words: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """As in "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        width: the least, in characters; longer cells widen the column.
        right: aligned to the right, as figures are.
        gap: blanks before it.
    """

    title: str
    width: int = 0
    right: bool = False
    gap: int = 1


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The titles, then one line per row."""
    table = [[column.title for column in columns], *rows]
    widths = [max(column.width, *map(len, cells)) for column, cells in zip(columns, zip(*table, strict=True), strict=True)]
    return [_line(columns, widths, cells) for cells in table]


def _line(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = [
        " " * column.gap + (cell.rjust(width) if column.right else cell.ljust(width))
        for column, width, cell in zip(columns, widths, cells, strict=True)
    ]
    return "".join(padded)[columns[0].gap :].rstrip()


MARKUP = re.compile(r"[\\`$*|<>\[\]~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def markdown(text: str) -> str:
    """Text as Markdown that shows it: without effect as markup, on one line."""
    return MARKUP.sub(r"\\\g<0>", _on_one_line(text))


def markdown_sentence(text: str) -> str:
    """The same of a sentence of ours, whose commands in backticks stay code; within them nothing else has an effect."""
    parts = _on_one_line(text).split("`")
    if len(parts) % 2 == 0 or not all(part.strip() for part in parts[1::2]):
        return markdown(text)
    return "".join(f"`{part}`" if index % 2 else markdown(part) for index, part in enumerate(parts))


def _on_one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as a table of Markdown; what cells hold has no effect as markup."""
    head = [f"| {' | '.join(column.title for column in columns)} |", "|" + "---|" * len(columns)]
    return head + [f"| {' | '.join(map(markdown, cells))} |" for cells in rows]


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Text as LaTeX that shows it: without effect as markup, on one line."""
    return "".join(LATEX.get(letter, letter) if letter.isprintable() else " " for letter in text)


def latex_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as a tabular of LaTeX, with the rules of the package booktabs."""
    kinds = "".join("r" if column.right else "l" for column in columns)
    table = [[column.title for column in columns], *rows]
    head, *body = [" & ".join(latex(cell.strip()) for cell in row) + r" \\" for row in table]
    return [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]


def latex_float(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> list[str]:
    """A table with its caption, as wide as the text (by graphicx), and notes below it."""
    shown = [rf"\par\footnotesize {latex(note)}" for note in notes]
    body = [r"\resizebox{\linewidth}{!}{%", *latex_table(columns, rows), "}", *shown]
    return [r"\begin{table}", r"\centering", rf"\caption{{{latex(caption)}}}", *body, r"\end{table}"]


def number(value: float | None, digits: int) -> str:
    """A figure; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """A change with its sign; a dash where nothing was compared."""
    return "-" if value is None else f"{value:+.{digits}f}"
