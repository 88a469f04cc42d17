"""Pages in a real browser: headless Chromium opens those of five kinds of runs, and of some made
up.

Skipped without it.
"""

import shutil

import pytest

from tunegrid.page import render
from tunegrid.runs import examples
from tunegrid.tests.kinds import KINDS, kind_page
from tunegrid.tests.pages import PAGES

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
LOOKS = {  # width and colours; A4 is 210 mm less two margins of 14, at 96 pixels an inch
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 800}},
    "print": {"viewport": {"width": 688, "height": 900}},
}
OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
# Pairs of charts, or of texts in one, that lie upon each other; and charts that are wide.
OVERLAPS = """() => {
  const boxes = (root, what) => [...root.querySelectorAll(what)].map(element => element.getBoundingClientRect());
  const pairs = (boxes, slack) => boxes.flatMap((a, place) => boxes.slice(place + 1).filter(b =>
    a.left + slack < b.right && b.left + slack < a.right && a.top + slack < b.bottom && b.top + slack < a.bottom));
  const texts = [...document.querySelectorAll('svg.chart')].flatMap(svg => pairs(boxes(svg, 'text'), 2));
  return [...pairs(boxes(document, 'svg.chart'), 0), ...texts, ...boxes(document, 'svg.chart').filter(box => box.width > 480)];
}"""
GROUND = "getComputedStyle(document.body).backgroundColor"
SWATCHES = "[...document.querySelectorAll('.swatch')].map(one => [getComputedStyle(one).backgroundColor, one.offsetWidth])"
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "STORE", folder / "store")
        drawn = {name: page() for name, page in PAGES.items()} | {
            kind: kind_page(kind) for kind in KINDS
        }
        for name, page in drawn.items():
            render.write_page(page, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in drawn}


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
    trouble = []
    own = ("data:", files["empty"].parent.as_uri())

    def open_(name, at="", **settings):
        context = browser.new_context(**{**LOOKS["light"], **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(own) else trouble.append(f"request: {request.url}")
            ),
        )
        page.goto(files[name].as_uri() + at)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", [*KINDS, *PAGES])
def test_a_page_in_each_look(opened, name, look):
    page = opened(name, **LOOKS[look])
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
    swatches = page.evaluate(SWATCHES)
    assert (
        len({colour for colour, _ in swatches} - {ground})
        == len(swatches)
        == (0 if name == "empty" else 5)
    )
    assert all(width > 8 for _, width in swatches)


def test_a_script_in_a_test_row_is_text(opened):
    page = opened("failing")
    assert "owned" not in page.title()
    assert page.locator("td", has_text="document.title = 'owned'").count() > 0
    assert page.locator("main img").count() == 0
