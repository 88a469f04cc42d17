"""Prints a `Page` as one HTML file with its styles, charts and script; and writes its charts alone."""

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tunegrid.errors import InputError, first_line
from tunegrid.machine import replace_file
from tunegrid.page.view import Page
from tunegrid.report.tables import mark_code, show
from tunegrid.terminal import defuse, strip_places

if TYPE_CHECKING:
    from tunegrid.page.charts import Chart

T = TypeVar("T")
FOLDER = Path(__file__).parent
MARKS = {
    **{"passed": "✓", "unconfirmed": "~"},
    **dict.fromkeys(("missed", "failed", "audit"), "✗"),
    **dict.fromkeys(("error", "killed"), "!"),
    **dict.fromkeys(("unfinished", "begun"), "…"),
    **{"stopped": "■", "not run": "–", "better": "▲", "worse": "▼", "same": "=", "cannot tell": "?"},
    **{"missing": "✕", "new": "+", "not comparable": "–", "equal": "=", "rounding": "≈", "changed": "≠"},
}
CELL = re.compile(r"<td>([a-z0-9]+_[a-z0-9]+_[a-z0-9]+)</td>")


def escape_html(text: str) -> Markup:
    """Text without absolute paths, as HTML that shows it; control and bidi characters are written out, as in a terminal."""
    return escape(defuse(strip_places(text)))


def sentence(text: str) -> Markup:
    """A sentence of ours: the same, but commands in backticks are code."""
    return Markup(mark_code(defuse(strip_places(text)), escape_html, Markup("<code>{}</code>")))


@cache
def environment() -> Environment:
    """The templates; whatever they print is escaped, without absolute paths."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=lambda value: escape_html(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"shown": show, "sentence": sentence, "verbatim": lambda text: escape(defuse(text))}  # of test rows, too
    files = {kind: Markup((FOLDER / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")}
    env.globals |= {"MARKS": MARKS, **files}
    return env


def html(page: Page) -> str:
    """The whole page; the name of a cell of its own in a table leads to it. Raises InputError for what cannot be drawn."""
    tables = [page.changes, page.methods, page.figures, page.costs, page.history]
    names = dict(zip(("changes", "methods", "figures", "costs", "history"), tables, strict=True))
    images = {name: [Markup(chart) for chart in group] for name, group in drawings(page, lambda chart: chart.svg()).items()}
    text = environment().get_template("page.html.j2").render(page=page, sections=names, charts=images)
    body = CELL.sub(lambda m: f'<td><a href="#{m[1]}">{m[1]}</a></td>' if m[1] in page.run.by_cell else m[0], text)
    return "\n".join(line for line in map(str.strip, body.splitlines()) if line) + "\n"


def drawings(page: Page, draw: "Callable[[Chart], T]") -> dict[str, list[T]]:
    """What `draw` makes of each chart, by section; raises InputError for a figure that cannot be drawn."""
    from tunegrid.page.charts import style

    with style(), warnings.catch_warnings(action="ignore"):  # of figures that no axis can hold
        try:
            return {name: list(map(draw, charts)) for name, charts in page.charts.items()}
        except (ArithmeticError, ValueError) as error:
            raise InputError(f"{page.run.name} holds a figure that is too large to draw ({first_line(error)})") from None


def write(page: Page, path: Path) -> int:
    """Write the page; return its bytes. Raises InputError if the place cannot be written."""
    content = html(page).encode(errors="replace")  # a file's date or name may hold half a character
    try:
        with replace_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another place for the page") from None
    return len(content)


def write_charts(page: Page, folder: Path) -> int:
    """Write the charts as SVG and PDF; return how many. Raises InputError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return sum(map(len, drawings(page, lambda chart: chart.save(folder)).values()))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); give another folder for charts") from None
