"""The page of all results in a real browser: no error, nothing requested, everything visible and at hand."""

from pathlib import Path

import pytest
from page_browser import Page, chromium, find_chromium
from page_examples import METHODS, SETTINGS, loss, write_benchmark, write_study

from meta_train.page import write_page
from meta_train.page_sections import find_directories, read_section
from meta_train.report import write_report

BINARY = find_chromium()
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no Chromium: `make browser` (Debian), or set $CHROME to a Chromium or Chrome"
)
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page of a made-up benchmark, a study and this repository's own results, opened once."""
    root = tmp_path_factory.mktemp("page")
    write_report(write_benchmark(root / "made-up"))
    directories = [root / "made-up", write_study(root / "study"), *find_directories(RESULTS)]
    _, file = write_page([read_section(directory) for directory in directories], root / "report")
    with chromium(str(BINARY), tmp_path_factory.mktemp("profile")) as browser:
        browser.open(file.as_uri())
        yield browser, file.as_uri()


@pytest.fixture
def page(opened) -> Page:
    """The page as it is when freshly loaded, in a window for a desk."""
    browser, address = opened
    browser.prefer("light")
    browser.resize(1200, 900)
    browser.load(address)
    return browser


def box(page: Page, selector: str, where: str = "center") -> dict[str, float]:
    """Return where an element is in the window, after scrolling to it."""
    found = f"document.querySelector({selector!r})"
    page.evaluate(f"{found}.scrollIntoView({{block: {where!r}}})")
    return page.evaluate(f"{found}.getBoundingClientRect().toJSON()")


def column(page: Page, table: int, index: int) -> list[str]:
    cells = f"#s1 table:nth-of-type({table}) tbody tr td:nth-child({index})"
    return page.evaluate(f"[...document.querySelectorAll('{cells}')].map(cell => cell.textContent)")


def tip(page: Page) -> dict[str, list[str]]:
    """Return what the shown values say: method → value and spread; and under "" the step."""
    return page.evaluate(
        "(() => { const tip = document.querySelector('.tip:not([hidden])'); if (!tip) return {};"
        " const rows = [...tip.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent));"
        " return Object.fromEntries([['', [tip.firstChild.textContent]], ...rows.map(row => [row[1], row.slice(2)])]);"
        "})()"
    )


# --- it opens ---


def test_the_page_opens_without_an_error_or_a_request(page):
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.problems == []


def test_every_figure_is_visible_and_has_curves_of_all_methods(page):
    plots = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => [plot.getBoundingClientRect().width,"
        " plot.getBoundingClientRect().height, plot.querySelectorAll('.curve').length,"
        " Math.min(...[...plot.querySelectorAll('.curve')].map(curve => curve.getBBox().width))])"
    )
    settings = page.evaluate("Object.values(figures).map(figure => figure.panels.length).reduce((a, b) => a + b)")
    assert len(plots) == settings >= len(SETTINGS)
    for width, height, curves, narrowest in plots:
        assert width > 300 and height > 200 and curves >= 4 and narrowest > 100
    images = page.evaluate("[...document.querySelectorAll('img')].map(i => [i.naturalWidth, i.clientWidth])")
    assert images and all(natural > 50 and shown > 50 for natural, shown in images)


def test_diverged_methods_leave_the_axis_to_the_others(page):
    ticks = page.evaluate("[...document.querySelector('.plot').querySelectorAll('text')].map(t => t.textContent)")
    assert "1" in ticks and "10" in ticks and "1000" not in ticks


# --- tables ---


def test_a_click_sorts_numbers_as_numbers_with_empty_cells_last(page):
    head = "#s1 th:nth-child(2) button"
    for order, expected in (
        ("ascending", ["-3 ± 1", "1.2e-3 (0.5)", "20.5", "1,500"]),
        ("descending", ["1,500", "20.5", "1.2e-3 (0.5)", "-3 ± 1"]),
    ):
        page.evaluate(f"document.querySelector({head!r}).click()")
        assert column(page, 1, 2) == expected
        assert page.evaluate(f"document.querySelector({head!r}).parentNode.ariaSort") == order
    for expected in (["9%", "50%", "100%", "–"], ["100%", "50%", "9%", "–"]):
        page.evaluate("document.querySelector('#s1 th:nth-child(3) button').click()")
        assert column(page, 1, 3) == expected
    assert page.evaluate("document.querySelectorAll('#s1 th[aria-sort]').length") == 1


def test_words_are_sorted_as_words(page):
    page.evaluate("document.querySelector('#s1 th button').click()")
    assert column(page, 1, 1) == ["nine", "one", "ten", "two"]
    assert column(page, 1, 2) == ["20.5", "1.2e-3 (0.5)", "1,500", "-3 ± 1"], "rows stay together"


def test_the_keyboard_sorts_too(page):
    page.evaluate("document.querySelector('#s1 th:nth-child(2) button').focus()")
    page.press("Enter")
    assert column(page, 1, 2)[0] == "-3 ± 1"
    page.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "share"


# --- curves ---


def test_pointing_shows_all_methods_values_at_the_nearest_step_in_order(page):
    place = box(page, ".plot")
    assert tip(page) == {}
    page.point(place["x"] + place["width"] * 0.6, place["y"] + place["height"] / 2)
    shown = tip(page)
    step = int(shown.pop("")[0].removeprefix("step "))
    # the axis takes 62 of the plot's pixels
    assert step == pytest.approx((0.6 * place["width"] - 52) / (place["width"] - 62) * 59, abs=1)
    finite = [name for name in METHODS if name != "wild"]
    assert list(shown) == [*sorted(finite, key=lambda name: loss(SETTINGS[0], name, step)), "wild"]
    for name in finite:
        assert float(shown[name][0]) == pytest.approx(loss(SETTINGS[0], name, step), rel=1e-3)  # four digits
    low, high = (float(number) for number in shown["NAG"][1].split(" to "))
    assert (low, high) == pytest.approx([f * loss(SETTINGS[0], "NAG", step) for f in (0.8, 1.2)], rel=1e-3)
    page.point(5, 5)
    assert tip(page) == {}


def test_a_diverged_method_is_said_to_have_diverged(page):
    page.evaluate("document.querySelector('.plot').focus()")
    page.press("End")
    assert tip(page)["wild"][0] == "diverged" and tip(page)[""] == ["step 59"]


def test_arrow_keys_read_values_step_by_step(page):
    page.evaluate("document.querySelector('.plot').focus()")
    for key, expected in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 59)):
        page.press(key)
        assert tip(page)[""] == [f"step {expected}"]
    page.press("Escape")
    assert tip(page) == {}


@pytest.mark.parametrize("where", ["start", "center", "end"])
def test_the_values_stay_within_the_window_and_beside_the_plot(where, page):
    place = box(page, ".plot", where)
    for share in (0.1, 0.5, 0.99):
        page.point(place["x"] + place["width"] * share, place["y"] + 50)
        shown = page.evaluate("document.querySelector('.tip:not([hidden])').getBoundingClientRect().toJSON()")
        assert shown["left"] >= 0 and shown["right"] <= 1200 and shown["top"] >= 0 and shown["bottom"] <= 900
        assert shown["bottom"] <= place["top"] + 1 or shown["top"] >= place["bottom"] - 1  # pixels, rounded


def test_the_legend_hides_and_shows_a_method_in_every_panel(page):
    button = "[...document.querySelectorAll('.legend')[0].querySelectorAll('button')][3]"
    count = "document.querySelectorAll('#s0 [data-method=SGD]').length"
    assert page.evaluate(f"{button}.textContent") == "SGD" and page.evaluate(count) == len(SETTINGS)
    page.evaluate(f"{button}.click()")
    assert page.evaluate(count) == 0 and page.evaluate(f"{button}.ariaPressed") == "false"
    page.evaluate("document.querySelector('.plot').focus()")
    page.press("Home")
    assert "SGD" not in tip(page) and "NAG" in tip(page)
    page.evaluate(f"{button}.click()")
    assert page.evaluate(count) == len(SETTINGS) and page.evaluate(f"{button}.ariaPressed") == "true"


def test_bands_are_drawn_for_learned_rules_and_the_best_classic(page):
    count = "[...document.querySelectorAll('#s0 .plot')].map(plot => plot.querySelectorAll('.band').length)"
    assert page.evaluate(count) == [4, 4]


# --- phone, dark, print ---


def test_a_phone_shows_the_page_without_scrolling_sideways(page):
    page.resize(360, 780, mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]
    assert page.evaluate("Math.max(...[...document.querySelectorAll('.plot')].map(p => p.clientWidth))") <= 360
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(b => b.scrollWidth > b.clientWidth)"), (
        "wide tables scroll in their boxes"
    )
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    # the drawing is made for this width: a text of 12 px is shown as such
    assert page.evaluate("(p => p.viewBox.baseVal.width / p.clientWidth)(document.querySelector('.plot'))") == 1


def test_a_finger_on_a_curve_shows_its_values(page):
    page.resize(360, 780, mobile=True)
    place = box(page, ".plot")
    page.touch(place["x"] + place["width"] * 0.5, place["y"] + place["height"] / 2)
    shown = page.evaluate("document.querySelector('.tip:not([hidden])').getBoundingClientRect().toJSON()")
    assert "lstm-one" in tip(page) and shown["left"] >= 0 and shown["right"] <= 360
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]


CONTRAST = """(() => {
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
  };
  const least = {};
  const inked = "body, a, code, th button, td, .hint, .note, .legend button, .plot text, .curve";
  for (const element of document.querySelectorAll(inked)) {
    const style = getComputedStyle(element);
    const kind = element.matches(".curve") ? "line" : "text";
    const ink = kind === "line" ? style.stroke : element.matches(".plot text") ? style.fill : style.color;
    const pair = [luminance(ink), luminance(ground(element))].sort((a, b) => b - a);
    least[kind] = Math.min(least[kind] || 99, (pair[0] + 0.05) / (pair[1] + 0.05));
  }
  return [least.text, least.line, luminance(ground(document.body))];
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_are_legible_in_the_light_and_in_the_dark(scheme, page):
    page.prefer(scheme)
    text, line, ground = page.evaluate(CONTRAST)
    assert text >= 4.5 and line >= 3, "WCAG 2.1, AA"
    assert (ground < 0.05) == (scheme == "dark")


def test_print_is_light_and_has_every_curve_and_no_controls(page):
    page.prefer("dark", media="print")
    assert page.evaluate(CONTRAST)[2] == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.hint')).display") == "none"
    page.prefer("light")
    pdf = page.print()
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000
    assert page.problems == []
