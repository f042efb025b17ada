"""The page in a real browser, on a phone and on a desk. Needs Debian's package chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, sync_playwright

from hiso.lab.bench import timing
from hiso.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (390, 1280)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser ({', '.join(NAMES)}): apt-get install chromium"
)


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    with timing.one_thread():
        write_report(list(runs.values()), path, title="Five runs")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """The page in a window without a network, and all that the browser said meanwhile."""

    page: Page
    told: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=WIDTHS)
def opened(browser, report, request) -> Iterator[Opened]:
    size = {"width": request.param, "height": 800}
    context = browser.new_context(viewport=size, offline=True, has_touch=request.param < 600)
    context.set_default_timeout(300_000)  # a busy machine is no failure
    found = Opened(context.new_page())
    page = found.page
    page.on("console", lambda message: found.told.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.told.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(report)
    page.wait_for_selector("body[data-drawn]")
    yield found
    context.close()


@pytest.fixture
def page(opened, report) -> Iterator[Page]:
    """After each test: no error or warning, and no request but for the file."""
    yield opened.page
    assert opened.told == []
    assert opened.requests == [report]


def drawn(page: Page, title: str) -> int:
    """How many lines, areas, marks, bars and heat maps of a figure have a size on the screen."""
    return page.evaluate(
        """title => {
            const figures = [...document.querySelectorAll("figure")];
            const figure = figures.find((f) => f.querySelector("h3").textContent === title);
            const shapes = ".scatterlayer path, .barlayer path, .heatmaplayer image";
            return [...figure.querySelectorAll(shapes)].filter((shape) => {
                const { width, height } = shape.getBoundingClientRect();
                return width + height > 0;
            }).length;
        }""",
        title,
    )


def figure(page: Page, title: str) -> Locator:
    return page.locator("figure", has=page.locator(f"h3:text-is('{title}')"))


def section(page: Page, title: str) -> Locator:
    return page.locator("section", has=page.locator(f"h2:text-is('{title}')"))


def ticks(page: Page, title: str, axis: str) -> dict[float, float]:
    """Where the ticks of an axis are, by value."""
    found = figure(page, title).locator(f".{axis}tick text").all()
    boxes = {float(tick.text_content().rstrip("kB")): tick.bounding_box() for tick in found}
    side = {"x": "width", "y": "height"}[axis]
    return {value: box[axis] + box[side] / 2 for value, box in boxes.items()}


def is_linear(places: dict[float, float]) -> bool:
    """Whether ticks lie where a linear axis has them, to a pixel."""
    values, pixels = np.array([*places]), np.array([*places.values()])
    assert len(places) > 2
    return np.abs(np.polyval(np.polyfit(values, pixels, 1), values) - pixels).max() < 1


def test_everything_is_drawn(page):
    titles = page.locator("h3").all_text_contents()
    figures = [title for title in titles if title not in ("What differs", "Changed during the run")]
    assert len(figures) == 9
    assert {title: drawn(page, title) > 0 for title in figures} == dict.fromkeys(figures, True)
    assert page.locator(".empty:visible").count() == 0


def test_it_fits_the_screen(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.locator("figure").all():
        box = figure.locator(".main-svg").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 300


def test_the_legend_hides_and_shows(page):
    button = page.locator(".legend button", has_text="zo_sgd")
    figures = ("Accuracy", "Training loss", "Size of the scalars")
    before = [drawn(page, title) for title in figures]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    after = [drawn(page, title) for title in figures]
    assert all(less < more for less, more in zip(after, before, strict=True))
    button.click()
    assert [drawn(page, title) for title in figures] == before


def test_axes_become_logarithmic(page):
    titles = ("Loss", "Training loss")
    for axis in "xy":
        button = section(page, "Curves").get_by_role("button", name=f"log {axis}")
        for on in (True, False):
            button.click()
            assert button.get_attribute("aria-pressed") == str(on).lower()
            assert [is_linear(ticks(page, title, axis)) for title in titles] == [not on] * 2
            other = {"x": "y", "y": "x"}[axis]
            assert all(is_linear(ticks(page, title, other)) for title in titles)
    assert is_linear(ticks(page, "Accuracy", "y"))  # a share has no use for it


def test_the_x_axis_is_chosen(page):
    curves = section(page, "Curves")
    title = figure(page, "Accuracy").locator(".xtitle")
    shapes = drawn(page, "Accuracy")
    assert title.text_content() == "rounds"
    curves.get_by_text("Bytes", exact=True).click()
    assert title.text_content() == "bytes sent so far, up and down, all clients"
    last = figure(page, "Accuracy").locator(".xtick text").last
    assert last.text_content().endswith("B")
    assert drawn(page, "Accuracy") == shapes
    curves.get_by_text("Forward passes", exact=True).click()
    assert title.text_content() != "rounds"
    assert drawn(page, "Accuracy") == shapes
    curves.get_by_text("Rounds", exact=True).click()
    assert drawn(page, "Accuracy") == shapes


def test_a_run_is_chosen(page):
    clients = section(page, "Clients")
    empty = figure(page, "Training loss by client").locator(".empty")
    clients.locator("select").select_option("fedavg, lr 0.01")
    assert empty.is_visible()
    assert drawn(page, "Participation") > 0
    clients.locator("select").select_option("hiso, lr 0.01, seed 1")
    assert not empty.is_visible()
    assert drawn(page, "Training loss by client") > 0


def test_pointing_tells_numbers(page):
    shown = figure(page, "Training loss")
    shown.scroll_into_view_if_needed()
    area = shown.locator(".nsewdrag").bounding_box()
    page.mouse.move(ticks(page, "Training loss", "x")[2], area["y"] + area["height"] / 2)
    shown.locator(".hoverlayer .legendtext").first.wait_for()
    told = shown.locator(".hoverlayer").text_content()
    assert told.startswith("2hiso, lr 0.01")
    assert "(2 runs)" in told
    page.mouse.move(0, 0)


def test_what_is_on_demand_opens(page):
    every = page.locator("details", has_text="All settings")
    assert not every.locator("table").is_visible()
    every.locator("summary").click()
    assert every.locator("th", has_text="batch_size").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def colours(page: Page) -> list[str]:
    """Of the page, its text, the text of a figure, and a figure's grid."""
    return page.evaluate(
        """() => [
            getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector(".xtick text")).fill,
            getComputedStyle(document.querySelector(".gridlayer path")).stroke,
        ]"""
    )


def brightness(colour: str) -> float:
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", "))) / 765


def test_dark_and_light(page):
    page.emulate_media(color_scheme="light")
    light = colours(page)
    page.emulate_media(color_scheme="dark")
    dark = colours(page)
    page.emulate_media(color_scheme="light")
    assert brightness(light[0]) > 0.9 > 0.3 > brightness(light[1])
    assert brightness(dark[0]) < 0.2 < 0.7 < brightness(dark[1])
    assert (light[2], dark[2]) == (light[1], dark[1])  # figures are written like the page
    assert brightness(light[3]) > 0.8 > 0.3 > brightness(dark[3])


def test_paper(page):
    width = "document.querySelector('.main-svg').getBoundingClientRect().width"
    screen = page.evaluate(width)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(width) == 680
    assert not page.locator("nav").is_visible()
    assert brightness(colours(page)[1]) < 0.3
    page.emulate_media(media="screen", color_scheme="light")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"{width} === {screen}")
