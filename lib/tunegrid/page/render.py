"""Prints a `Page` as one HTML file with its styles, charts and script; writes its charts alone, and takes its picture."""

import re
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tunegrid.errors import InputError, first_line
from tunegrid.machine import replacing
from tunegrid.page.view import Page
from tunegrid.results.report import as_html, escaped_html, html_with_code, shown
from tunegrid.terminal import without_places

if TYPE_CHECKING:
    from tunegrid.page.charts import Chart

T = TypeVar("T")
FOLDER = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MARKS = {
    **dict.fromkeys(("passed",), "✓"),
    **dict.fromkeys(("missed", "failed", "audit"), "✗"),
    **dict.fromkeys(("error", "killed"), "!"),
    **dict.fromkeys(("unfinished", "begun"), "…"),
    **{"stopped": "■", "not run": "–", "reported": "○", "better": "▲", "worse": "▼", "same": "=", "cannot tell": "?"},
    **{"missing": "✕", "new": "+", "not comparable": "–", "equal": "=", "rounding": "≈", "changed": "≠"},
}
CELL = re.compile(r"<td>([a-z0-9]+_[a-z0-9]+_[a-z0-9]+)</td>")


def sentence(text: str) -> Markup:
    """A sentence of ours: no absolute path, and commands in backticks are code."""
    return Markup(html_with_code(without_places(text)))


@cache
def environment() -> Environment:
    """The templates; whatever they print is escaped, without absolute paths."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=lambda value: Markup(escaped_html(without_places(value))) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"shown": shown, "sentence": sentence}
    files = {kind: Markup((FOLDER / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")}
    env.globals |= {"MARKS": MARKS, **files}
    return env


def html(page: Page) -> str:
    """The whole page; the name of a cell of its own in a table leads to it. Raises InputError for what cannot be drawn."""
    tables = [page.changes, page.methods, page.figures, page.costs, page.history]
    names = dict(zip(("changes", "methods", "figures", "costs", "history"), tables, strict=True))
    drawn = {name: [Markup(chart) for chart in own] for name, own in drawings(page, lambda chart: chart.svg()).items()}
    text = (
        environment()
        .get_template("page.html.j2")
        .render(page=page, tables=lambda sections: Markup(as_html(sections)), sections=names, charts=drawn)
    )
    linked = CELL.sub(lambda m: f'<td><a href="#{m[1]}">{m[1]}</a></td>' if m[1] in page.run.by_cell else m[0], text)
    return "\n".join(line for line in map(str.strip, linked.splitlines()) if line) + "\n"


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
        with replacing(path) as part:
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


def screenshot(page: Path, picture: Path, width: int = 1200, height: int = 900) -> None:
    """A PNG of the top of a page. Raises InputError if there is no browser, or it fails."""
    browser = next(filter(None, map(which, BROWSERS)), None)
    if browser is None:
        raise InputError(f"--screenshot needs Chromium: none of {', '.join(BROWSERS)} is on the PATH")
    with TemporaryDirectory() as profile:
        options = [f"--screenshot={picture.resolve()}", f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        quiet = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--no-first-run"]
        command = [browser, *quiet, *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, encoding="utf-8")
    if done.returncode or not picture.is_file():
        last = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise InputError(f"{browser} could not make {picture}: {last}")
