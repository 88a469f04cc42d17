"""Renders a `Page` as one HTML file with styles, charts and script, and saves charts as files."""

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

Drawn = TypeVar("Drawn")
PACKAGE = Path(__file__).parent
MARKS = {
    "passed": "✓",
    "unconfirmed": "~",
    "known": "~",
    "missed": "✗",
    "failed": "✗",
    "audit": "✗",
    "error": "!",
    "killed": "!",
    "unfinished": "…",
    "begun": "…",
    "stopped": "■",
    "not run": "–",
    "better": "▲",
    "worse": "▼",
    "same": "=",
    "cannot tell": "?",
    "missing": "✕",
    "new": "+",
    "not comparable": "–",
    "equal": "=",
    "rounding": "≈",
    "changed": "≠",
}
CELL = re.compile(r"<td>([a-z0-9]+_[a-z0-9]+_[a-z0-9]+)</td>")


def escape_html(text: str) -> Markup:
    """Escapes text for HTML, shortens absolute paths and spells out control and bidi characters."""
    return escape(defuse(strip_places(text)))


def sentence(text: str) -> Markup:
    """Escapes a sentence as `escape_html` does and shows commands in backticks as code."""
    return Markup(mark_code(defuse(strip_places(text)), escape_html, Markup("<code>{}</code>")))


@cache
def environment() -> Environment:
    """The Jinja environment, which escapes all output and shortens absolute paths."""
    env = Environment(
        loader=FileSystemLoader(PACKAGE / "templates"),
        autoescape=True,
        finalize=lambda value: escape_html(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["shown"] = show
    env.filters["sentence"] = sentence
    env.filters["verbatim"] = lambda text: escape(defuse(text))  # test rows keep their paths
    env.globals["MARKS"] = MARKS
    for kind in ("css", "js"):
        env.globals[kind] = Markup((PACKAGE / f"page.{kind}").read_text(encoding="utf-8"))
    return env


def html(page: Page) -> str:
    """Renders the whole page; cell names in tables link to the cells' sections.

    Raises InputError if a chart cannot be drawn.
    """
    sections = {
        "changes": page.changes,
        "methods": page.methods,
        "figures": page.figures,
        "costs": page.costs,
        "history": page.history,
    }
    charts = drawings(page, lambda chart: Markup(chart.svg()))
    template = environment().get_template("page.html.j2")
    text = template.render(page=page, sections=sections, charts=charts)

    def link(match: re.Match[str]) -> str:
        cell = match[1]
        return f'<td><a href="#{cell}">{cell}</a></td>' if cell in page.run.by_cell else match[0]

    lines = [line.strip() for line in CELL.sub(link, text).splitlines()]
    return "\n".join(filter(None, lines)) + "\n"


def drawings(page: Page, draw: "Callable[[Chart], Drawn]") -> dict[str, list[Drawn]]:
    """The results of `draw` for each section's charts; raises InputError if a chart fails."""
    from tunegrid.page.charts import style

    with style(), warnings.catch_warnings(action="ignore"):  # some figures fit no axis
        try:
            return {name: list(map(draw, charts)) for name, charts in page.charts.items()}
        except (ArithmeticError, ValueError) as error:
            cause = f"a figure that is too large to draw ({first_line(error)})"
            raise InputError(f"{page.run.name} holds {cause}") from None


def write_page(page: Page, path: Path) -> int:
    """Writes the page and returns its size in bytes; raises InputError if that fails."""
    content = html(page).encode(errors="replace")  # a date or name may hold a lone surrogate
    try:
        with replace_file(path) as file:
            file.write_bytes(content)
    except OSError as error:
        cause = f"{path} cannot be written ({error.strerror or error})"
        raise InputError(f"{cause}; give another place for the page") from None
    return len(content)


def write_charts(page: Page, folder: Path) -> int:
    """Writes the charts as SVG and PDF and returns the number of charts.

    Raises InputError if a chart cannot be drawn or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        charts = drawings(page, lambda chart: chart.save(folder))
        return sum(len(group) for group in charts.values())
    except OSError as error:
        cause = f"{folder} cannot be written ({error.strerror or error})"
        raise InputError(f"{cause}; give another folder for charts") from None
