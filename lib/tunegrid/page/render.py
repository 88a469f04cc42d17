"""Prints a `Page` as one HTML file with its styles and script, and takes its picture."""

import subprocess
from functools import cache
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tunegrid.errors import InputError
from tunegrid.machine import replacing
from tunegrid.page.cells import LEDGER
from tunegrid.page.charts import SHAPES, stacked
from tunegrid.page.verdict import begun, change, minus, tail
from tunegrid.page.view import RATE, Page
from tunegrid.results import compare
from tunegrid.results.estimates import duration
from tunegrid.results.table import number
from tunegrid.results.table import signed as with_sign
from tunegrid.terminal import without_places

FOLDER = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
NAMED = 30  # cells of a cause that are named before a click
DROPS = {"b1": 2, "b2": 10, "b3": 20, "b4": 40}  # styles, by the points that a field lost at least
MARKS = {
    **{
        "passed": "✓",
        "missed": "✗",
        "stopped": "■",
        "error": "!",
        "killed": "!",
        "not run": "–",
        "unfinished": "…",
        "begun": "…",
        "reported": "○",
    },
    **{"better": "▲", "worse": "▼", "same": "=", "cannot tell": "?", "missing": "✕", "new": "+", "not comparable": "–"},
    **{"equal": "=", "rounding": "≈", "changed": "≠", "too good": "⁈"},
}


def size(count: float | None) -> str:
    """Bytes in the unit that reads best."""
    if count is None:
        return "–"
    scale, unit = next(((scale, unit) for scale, unit in SIZES if count >= scale), (1, "B"))
    return f"{count / scale:.3g} {unit}" if count / scale < 1000 else f"{count / scale:.0f} {unit}"


def tick(figure: float) -> str:
    """A figure on an axis."""
    scale, unit = next(((10**power, unit) for power, unit in ((9, "G"), (6, "M"), (3, "k")) if figure >= 10**power), (1, ""))
    return f"{figure / scale:.6g}{unit}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign."""
    return "–" if value is None else minus(with_sign(value, digits))


def shade_of_drop(change: float) -> str:
    """The style of a field by the points that it lost; none for less than the smallest."""
    return next((name for name, least in reversed(DROPS.items()) if -change >= least), "")


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, to three digits."""
    return "–" if seconds is None else f"{1000 * seconds:.3g}"


def figure(value: float | None, digits: int = 1) -> str:
    """A figure; a dash where nothing was measured."""
    return "–" if value is None else number(value, digits)


class Verbatim(str):
    """A test row's text, which is shown as it is."""


def shown(value: object) -> object:
    """What the page prints of a value: of a sentence, no absolute path."""
    return without_places(value) if type(value) is str else value


@cache
def environment() -> Environment:
    """The templates; whatever they print is escaped."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "size": size,
        "tick": tick,
        "figure": figure,
        "signed": signed,
        "duration": duration,
        "change": change,
        "begun": begun,
        "tail": tail,
        "ms": milliseconds,
        "verbatim": Verbatim,
    }
    env.globals |= {
        "MARKS": MARKS,
        "LEDGER": LEDGER,
        "SHAPES": SHAPES,
        "COLUMNS": compare.COLUMNS,
        "SUMMARY": compare.SUMMARY,
        "compared_row": compare.row,
        "limits": compare.remarks,
        "column_legend": compare.legend,
        "DROPS": DROPS,
        "shade_of_drop": shade_of_drop,
        "NAMED": NAMED,
        "RATE": RATE,
        "stacked": stacked,
        "css": Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        "js": Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
    }
    return env


def html(page: Page) -> str:
    """The whole page."""
    lines = environment().get_template("page.html.j2").render(page=page).splitlines()
    return "\n".join(line for line in map(str.strip, lines) if line) + "\n"


def write(page: Page, path: Path) -> int:
    """Write the page; return its bytes. Raises InputError where the place cannot be written."""
    try:
        content = html(page).encode(errors="replace")  # a file's date or name may hold half a character
    except OverflowError:
        raise InputError(f"{page.run.name} holds a figure that is too large to draw") from None
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another place for the page") from None
    return len(content)


def screenshot(page: Path, picture: Path, width: int = 1200, height: int = 900) -> None:
    """A PNG of the top of a page. Raises InputError where there is no browser, or it fails."""
    browser = next(filter(None, map(which, BROWSERS)), None)
    if browser is None:
        raise InputError(f"--screenshot needs Chromium: none of {', '.join(BROWSERS)} is on the PATH")
    with TemporaryDirectory() as profile:
        options = [f"--screenshot={picture.resolve()}", f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        quiet = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--no-first-run"]
        address = page.resolve().as_uri()
        done = subprocess.run(
            [browser, *quiet, *options, address], capture_output=True, text=True, check=False, timeout=60, encoding="utf-8"
        )
    if done.returncode or not picture.is_file():
        last = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise InputError(f"{browser} could not make {picture}: {last}")
