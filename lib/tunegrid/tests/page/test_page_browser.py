"""Pages in a real browser: headless Chromium opens those of ten kinds of runs, and of some made
up.

Skipped without it.
"""

import shutil

import pytest

from tunegrid.page import render
from tunegrid.runs import examples
from tunegrid.tests.kinds import KINDS, kind_page
from tunegrid.tests.pages import PAGES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
LOOKS = {  # width and colours; A4 is 210 mm less two margins of 14, at 96 pixels an inch
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 800}},
    "print": {"viewport": {"width": 688, "height": 900}},
}
OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
# Pairs of charts, or of texts in one, that lie upon each other; and charts that are wide.
OVERLAPS = """() => {
  const boxes = (root, what) =>
    [...root.querySelectorAll(what)].map(element => element.getBoundingClientRect());
  const overlap = (a, b, slack) =>
    a.left + slack < b.right && b.left + slack < a.right &&
    a.top + slack < b.bottom && b.top + slack < a.bottom;
  const pairs = (boxes, slack) => boxes.flatMap(
    (box, number) => boxes.slice(number + 1).filter(later => overlap(box, later, slack)));
  const charts = boxes(document, 'svg.chart');
  const texts = [...document.querySelectorAll('svg.chart')].flatMap(
    svg => pairs(boxes(svg, 'text'), 2));
  return [...pairs(charts, 0), ...texts, ...charts.filter(box => box.width > 480)];
}"""
GROUND = "getComputedStyle(document.body).backgroundColor"
SWATCHES = "[...document.querySelectorAll('.swatch')]"
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install '.[dev]'"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each page's file, by its kind or the name of its run."""
    folder = tmp_path_factory.mktemp("pages")
    files = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "STORE", folder / "store")
        pages = {kind: kind_page(kind) for kind in KINDS}
        pages |= {name: make() for name, make in PAGES.items()}
        for name, page in pages.items():
            files[name] = folder / f"{name}.html"
            render.write_page(page, files[name])
    return files


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as starter:
        running = starter.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture
def opened(browser, files):
    """Opens a page; when the test is over, nothing may have gone wrong on any, and none asked for
    anything from elsewhere.
    """
    contexts = []
    faults = []
    own_addresses = ("data:", files["empty"].parent.as_uri())

    def note_request(request):
        if not request.url.startswith(own_addresses):
            faults.append(f"request: {request.url}")

    def open_page(name, look="light"):
        context = browser.new_context(**LOOKS[look])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on("request", note_request)
        page.goto(files[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", [*KINDS, *PAGES])
def test_a_page_in_each_look(opened, name, look):
    page = opened(name, look)
    assert page.locator("h1").is_visible()
    if look == "print":
        page.emulate_media(media="print", color_scheme="light")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details.section:not([open]), .js:visible").count() == 0
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= LOOKS[look]["viewport"]["width"]
    assert page.evaluate(OVERLAPS) == []
    ground = page.evaluate(GROUND)
    assert ground == ("rgb(20, 23, 28)" if look == "dark" else "rgb(255, 255, 255)")
    swatch_colours = page.evaluate(
        f"{SWATCHES}.map(swatch => getComputedStyle(swatch).backgroundColor)"
    )
    assert len(swatch_colours) == (0 if name == "empty" else 5)
    assert len(set(swatch_colours) - {ground}) == len(swatch_colours)
    widths = page.evaluate(f"{SWATCHES}.map(swatch => swatch.offsetWidth)")
    assert all(width > 8 for width in widths)


def test_a_script_in_a_test_row_is_text(opened):
    page = opened("failing")
    assert "owned" not in page.title()
    assert page.locator("td", has_text="document.title = 'owned'").count() > 0
    assert page.locator("main img").count() == 0
