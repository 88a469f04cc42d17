"""The page in a real browser: headless Chromium opens pages of made-up runs. Skipped where there is no Chromium."""

import shutil
import subprocess
import tarfile

import pytest

from tunegrid import ROOT
from tunegrid.page import render
from tunegrid.results import examples
from tunegrid.tests.pages import PAGES

AXE = "axe-core@4.14.1"
CACHE = ROOT / ".cache" / "axe"
CHROMIUM = next(filter(None, map(shutil.which, render.BROWSERS)), None)
A4_PIXELS = 688  # 210 mm less two margins of 14, at 96 pixels an inch
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[dev]'")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each page's file, by the name of its run."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "STORE", folder / "store")
        for name, page in PAGES.items():
            render.write(page(), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as starter:
        running = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, files):
    """Opens a page of `PAGES`; when the test is over, nothing may have gone wrong on any."""
    contexts, trouble = [], []

    def open_(name, at="", width=1200, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: trouble.append(f"request: {request.url}") if is_foreign(request.url) else None)
        page.goto(files[name].as_uri() + at)
        return page

    def is_foreign(url):
        return not url.startswith(("data:", files["empty"].parent.as_uri()))

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1200, 360])
def test_a_page_opens_without_an_error_or_a_request_and_nothing_sticks_out(opened, name, width):
    page = opened(name, width=width)
    assert "tunegrid" in page.title()
    assert page.locator("h1").is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_column_sorts_both_ways_by_its_figures(opened):
    page = opened("failing")
    page.locator("summary", has_text="Memory, speed and energy").click()
    button = page.locator("#costs table").first.get_by_role("button", name="weights MiB")
    cells = page.locator("#costs table").first.locator("tbody tr")
    button.click()
    assert cells.first.locator("td").first.inner_text() == "bert_sum_lora"  # the first of the study's, the smallest of ours
    button.focus()
    page.keyboard.press("Enter")
    assert cells.first.locator("td").first.inner_text() == "t5_sa_sft"
    assert page.locator("#costs th[aria-sort]").first.get_attribute("aria-sort") == "descending"


def test_cells_are_found_by_words_and_a_permalink_still_leads_to_a_hidden_one(opened):
    page = opened("failing")
    page.locator("#find").fill("gpt2 sa")
    assert page.locator("details.cell:visible").count() == 3
    assert page.locator("#found").inner_text() == "3 of 27 cells"
    page.locator("#grid a[href='#t5_qa_sft']").click()
    assert page.url.endswith("#t5_qa_sft")
    page.wait_for_function("document.getElementById('t5_qa_sft').getBoundingClientRect().top >= 0")
    assert 0 <= page.locator("#t5_qa_sft").bounding_box()["y"] < 900


@pytest.mark.parametrize("scripts", [True, False])
def test_a_permalink_opens_its_cell(opened, scripts):
    page = opened("several_seeds", "#gpt2_sum_sft", java_script_enabled=scripts)
    assert 0 <= page.locator("#gpt2_sum_sft").bounding_box()["y"] < 100
    assert page.locator("details.cell[open]").count() == 1


def test_the_keyboard_alone_reaches_everything_in_order(opened):
    page = opened("one_cell")
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    stops = page.evaluate("""() => [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')]
        .filter(element => element.checkVisibility()).map((element, place) => (element.dataset.stop = place))""")
    reached = []
    for _ in stops:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("Number(document.activeElement.dataset.stop)"))
    assert reached == stops
    assert page.locator("[data-stop='0']").inner_text() == "Skip to the answer"


def test_without_scripts_all_is_there_but_sorting_and_filtering(opened):
    page = opened("failing", "#t5_qa_sft", java_script_enabled=False)
    assert page.locator("details.cell:visible").count() == 27
    assert page.locator("svg.chart").count() == 9 + 9 + 3
    assert page.locator(".js:visible, thead button").count() == 0
    page.locator("#t5_qa_sft summary", has_text="Test rows").click()
    assert page.locator("#t5_qa_sft details[open] tbody tr:visible").count() == 30


def test_a_script_in_a_test_row_is_text(opened):
    page = opened("failing")
    assert "owned" not in page.title()
    assert page.locator("td", has_text="document.title = 'owned'").count() > 0
    assert page.locator("main img").count() == 0


def test_dark_is_dark_and_paper_is_white_and_wide_enough(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    page = opened("failing", color_scheme="dark", width=A4_PIXELS)
    assert page.evaluate(ground) == "rgb(20, 23, 28)"
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS
    assert page.locator(".js:visible").count() == 0


@pytest.mark.parametrize("name", ["failing", "many_cells", "several_seeds", "one_cell"])
def test_charts_do_not_overlap_nor_their_texts_and_none_is_wide(opened, name):
    overlaps = """() => {
      document.querySelectorAll('details').forEach(details => details.open = true);
      const boxes = (root, what) => [...root.querySelectorAll(what)].map(element => element.getBoundingClientRect());
      const count = (boxes, slack) => boxes.reduce((sum, a, place) => sum + boxes.slice(place + 1).filter(b =>
        a.left + slack < b.right && b.left + slack < a.right &&
        a.top + slack < b.bottom && b.top + slack < a.bottom).length, 0);
      const texts = [...document.querySelectorAll('svg.chart')].map(svg => count(boxes(svg, 'text'), 2));
      return [count(boxes(document, 'svg.chart'), 0), ...texts, ...boxes(document, 'svg.chart').map(box => box.width > 480)];
    }"""
    assert not any(opened(name).evaluate(overlaps))


def test_the_screenshot_of_the_command_is_a_picture(files, tmp_path):
    render.screenshot(files["failing"], tmp_path / "page.png")
    assert 20_000 < (tmp_path / "page.png").stat().st_size < 200_000


@pytest.fixture(scope="module")
def axe():
    """The rules of axe-core, which are no part of the product: npm fetches them into .cache."""
    script = CACHE / "package" / "axe.min.js"
    if not script.is_file():
        if shutil.which("npm") is None:
            pytest.skip("no npm, which fetches axe-core: the accessibility check is left out")
        CACHE.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", AXE, "--silent"], cwd=CACHE, capture_output=True, text=True, check=False, timeout=60
        )
        if packed.returncode:
            pytest.skip(f"npm cannot fetch {AXE}: {packed.stderr.strip()[-200:]}")
        with tarfile.open(CACHE / packed.stdout.split()[-1]) as archive:
            archive.extract("package/axe.min.js", CACHE, filter="data")
    return script.read_text()


@pytest.mark.parametrize(
    ("name", "scheme"), [("one_cell", "light"), ("one_cell", "dark"), ("empty", "light"), ("failing", "dark")]
)
def test_axe_has_no_serious_finding(opened, axe, name, scheme):
    page = opened(name, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('article:first-of-type details').forEach(details => details.open = true)")
    page.evaluate(axe)
    findings = page.evaluate("async () => (await axe.run({resultTypes: ['violations']})).violations")
    assert [(finding["id"], finding["nodes"][0]["html"][:200]) for finding in findings] == []
