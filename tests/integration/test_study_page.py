"""A study's page in a real Chromium: readable light, dark and on a phone; menus choose, marks say their numbers."""

import pytest
from charter.study.folder import StudyFolder
from charter.study.report import write_all
from charter.study.results import StudyResults

from tests.support.chromium import Browser, Page
from tests.support.study_folder import MadeArm, read_spec, write_study

ARMS = {"rlhf": MadeArm(90, -60, "imported"), "rlaif": MadeArm(50, 150, "judge"), "sft": MadeArm(20, 20)}
SHOWN = "[...document.querySelectorAll('%s')].filter((one) => one.getClientRects().length)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    judges = ("third", "<b>hostile</b>")
    return write_study(tmp_path_factory.mktemp("home") / "study", ARMS, prompts=30, samples=100, judges=judges)


@pytest.fixture(scope="module")
def results(folder: StudyFolder) -> StudyResults:
    return write_all(read_spec(folder), folder)


@pytest.fixture
def page(browser: Browser, folder: StudyFolder, results: StudyResults) -> Page:
    opened = browser.new_page(folder.report.as_uri())
    opened.wait("!document.querySelector('#choice').hidden")
    return opened


def shown(page: Page, selector: str) -> list[str]:
    return list(page.evaluate(f"{SHOWN % selector}.map((one) => one.textContent.trim())"))


def choose(page: Page, name: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const select = document.querySelector('[name={name}]'); select.value = '{value}';"
        " select.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_one_figure_is_shown_by_the_judge_and_view_that_are_chosen(page: Page) -> None:
    assert shown(page, ".front .plot-title") == ["By third, answers as they are"]
    choose(page, "view", "controlled")
    assert shown(page, ".front .plot-title") == ["By third, as if all answers were equally long"]
    choose(page, "judge", "2")
    assert shown(page, ".front .plot-title") == ["By <b>hostile</b>, as if all answers were equally long"]
    assert len(shown(page, "#ends table")) == len(shown(page, ".matrix")) == 1


def test_a_mark_under_the_mouse_says_its_numbers(page: Page, results: StudyResults) -> None:
    front = results.judges[0].as_judged
    assert front is not None
    end = front.end("rlaif")
    assert end is not None
    page.looks(1200, 900)
    x, y = page.evaluate(
        "(() => { const mark = [...document.querySelectorAll('.spot')].find((one) => one.getClientRects().length"
        " && one.getAttribute('aria-label').startsWith('rlaif, end')); mark.scrollIntoView({block: 'center'});"
        " const box = mark.getBoundingClientRect();"
        " return [box.left + box.width / 2 + 5, box.top + box.height / 2]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait("document.querySelector('.spot.read')")
    (said,) = [one for one in shown(page, ".readout") if one]
    assert said.startswith(f"rlaif, end: helpful {end.across.value:+.0f} ({end.across.low:+.0f} to")
    assert said.endswith("seeds 1, 2 and 3")


def test_a_mark_is_reached_by_the_keyboard(page: Page) -> None:
    page.evaluate("document.querySelector('[name=view]').focus()")
    page.press("Tab")
    while not page.evaluate("document.activeElement.classList.contains('spot')"):
        page.press("Tab")
    assert shown(page, ".readout") == [page.evaluate("document.activeElement.getAttribute('aria-label')")]


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable(page: Page, width: int, dark: bool) -> None:
    page.looks(width, 800, dark=dark)
    page.assert_readable()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(shown(page, ".front svg")) == 1


def test_nothing_is_loaded_and_names_stay_texts(page: Page, folder: StudyFolder) -> None:
    assert "://" not in folder.report.read_text()
    assert page.evaluate("document.querySelectorAll('main b').length") == 0
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
