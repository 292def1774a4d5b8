"""The report in a real Chromium: nothing is cut off on a phone, no row of charts has an empty place."""

import json
from collections import Counter

import pytest
from charter.evaluation.report.report import write_report

from tests.support.chromium import Browser, Page
from tests.support.report_fixture import write_run_folder

FOLDER = "/home/somebody/with/a/long/way/to/the/models/Tiny-Model-Instruct"


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = write_run_folder(tmp_path_factory.mktemp("report") / "run")
    spec = json.loads((folder / "spec.json").read_text())
    spec["policy"]["model"] = spec["judge"]["model"] = FOLDER
    (folder / "spec.json").write_text(json.dumps(spec))
    info = json.loads((folder / "run.json").read_text())
    info["phase_seconds"] = {"PPO": 59 * 60 + 59}
    (folder / "run.json").write_text(json.dumps(info))
    opened = browser.new_page(write_report(folder).as_uri())
    opened.wait("document.readyState === 'complete'")
    return opened


@pytest.mark.parametrize("width", [360, 400, 768, 1000, 1280, 1800])
def test_nothing_is_cut_off_and_a_duration_stays_on_one_line(page: Page, width: int) -> None:
    page.looks(width, 900)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        "[...document.querySelectorAll('nav, .scroll, .card, header dd')]"
        ".filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.innerText)"
    )
    assert cut == []
    lines = (
        "(({height}, style) => height / parseFloat(style.lineHeight))(%s.getBoundingClientRect(), getComputedStyle(%s))"
    )
    number = "document.querySelector('.number.line')"
    assert page.evaluate(lines % (number, number)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_no_row_of_charts_has_an_empty_place(page: Page, width: int) -> None:
    page.looks(width, 900)
    rows = page.evaluate(
        "[...document.querySelectorAll('.plots')].map((plots) => [...plots.children].map((one) =>"
        " [Math.round(one.getBoundingClientRect().top), one.getBoundingClientRect().width / plots.clientWidth]))"
    )
    assert len(rows) == 2
    for plots in rows:
        filled = Counter[int]()
        for top, share in plots:
            filled[top] += share
        assert all(share > 0.9 for share in filled.values()), filled


def test_the_header_names_models_without_their_folders(page: Page) -> None:
    facts = page.evaluate("[...document.querySelectorAll('header dd')].map((one) => one.innerText)")
    assert {"Tiny-Model-Instruct", "Tiny-Model-Instruct by contrast"} <= set(facts)
    assert FOLDER not in page.evaluate("document.querySelector('header').outerHTML")
