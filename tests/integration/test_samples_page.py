"""The page of a run's samples in a real Chromium."""

import pytest
from charter.evaluation.report.samples_page import render_samples_page
from charter.runs.samples import Sample

from tests.support.chromium import Browser, Page

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


def answer(step: int, number: int) -> Sample:
    """Two answers to a prompt, the second of 60 tokens and cut off; one of step 3 was left out."""
    pieces = (
        ["Pour", " the", "", "", " \u2615", "\nslow", "ly", ".", "<|im_end|>"] if number % 2 == 0 else [" tea"] * 60
    )
    failed = (step, number) == (3, 1)
    figures = [0.1 * (place % 7 - 3) for place in range(len(pieces))]
    return Sample(
        id=f"{step}.{number}",
        prompt=[{"role": "user", "content": f"Prompt {step}. {HOSTILE}"}],
        dimension="kind" if step % 2 else "safe",
        answer="".join(pieces).replace("<|im_end|>", ""),
        tokens=len(pieces),
        ended=number % 2 == 0,
        score=None if failed else step - 5 * number,
        weight_version=step,
        preference_version=1,
        trace_id="",
        group=number // 2,
        random=number < 2,
        extreme=number >= 1,
        failure="too_long: it does not fit" if failed else "",
        pieces=pieces,
        log_ratios=[] if failed else figures,
        advantages=[] if failed else [-figure for figure in figures],
    )


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = tmp_path_factory.mktemp("samples") / "samples.html"
    answers = [answer(step, number) for step in range(1, 16) for number in range(4)]
    file.write_text(render_samples_page(answers, "kinder", 2), encoding="utf-8")
    opened = browser.new_page(file.as_uri())
    opened.wait("document.querySelector('.listing-item')")
    return opened


@pytest.fixture(autouse=True)
def _anew(page: Page) -> None:
    page.looks(1280, 900)
    page.evaluate("document.querySelector('.listing-controls').reset()")
    page.evaluate(
        "document.querySelector('.listing-controls').dispatchEvent(new Event('input', {bubbles: true})),"
        " document.querySelector('#colours select').selectedIndex = 0,"
        " document.querySelector('#colours select').dispatchEvent(new Event('change'))"
    )


def fill_in(page: Page, label: str, value: str) -> None:
    """Write into a box, or choose in a menu, by its label."""
    page.evaluate(
        "((label, value) => {"
        " const of = () => [...document.querySelectorAll('label')].find((one) => one.innerText.startsWith(label));"
        ' const one = document.querySelector(`[aria-label="${label}"]`) || of().querySelector("input, select");'
        f" one.value = value; one.dispatchEvent(new Event('input', {{bubbles: true}})); }})({label!r}, {value!r})"
    )


def shown(page: Page) -> list[str]:
    codes = "[...document.querySelectorAll('.answer-head code')]"
    found: list[str] = page.evaluate(f"{codes}.map((one) => one.textContent)")
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(page: Page, width: int, dark: bool) -> None:
    page.looks(width, 900, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.assert_readable()
    assert page.evaluate("window.broken") is None


def test_a_token_shows_its_figures_and_parts_of_a_character_are_one(page: Page) -> None:
    tokens = page.evaluate("[...document.querySelector('.tokens').children].map((one) => one.textContent)")
    assert tokens == ["Pour", " the", " \u2615", "\nslow", "ly", ".", "<|im_end|>"]
    page.evaluate("document.querySelector('.token').focus()")
    assert page.text("#readout") == (
        '"Pour" token 1 of 9: log-prob difference to the reference \u22120.3; advantage +0.3'
    )
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.text("#readout") == (
        '" \u2615" tokens 3 to 5 of 9: log-prob difference to the reference \u22120.1, 0, +0.1; '
        "advantage +0.1, 0, \u22120.1"
    )
    page.evaluate("document.activeElement.blur()")
    assert page.evaluate("document.querySelector('#readout').hidden")


def test_colours_follow_the_figure_that_is_chosen(page: Page) -> None:
    side = "document.querySelector('.token').className"
    assert page.evaluate(side) == "token low"
    assert page.text(".scale-numbers").split() == ["\u22120.3", "0", "0.3"]
    change = "document.querySelector('#colours select').dispatchEvent(new Event('change'))"
    page.evaluate(f"document.querySelector('#colours select').selectedIndex = 1, {change}")
    assert page.evaluate(side) == "token high"
    assert "made less likely" in page.text(".scale")
    page.evaluate(f"document.querySelector('#colours select').selectedIndex = 2, {change}")
    assert page.evaluate(side) == "token"


def test_answers_are_found_by_step_score_length_end_and_reason(page: Page) -> None:
    assert page.text(".listing-status") == "30 prompts"
    fill_in(page, "Step, from", "3")
    fill_in(page, "Step, to", "3")
    assert shown(page) == ["3.0", "3.1", "3.2", "3.3"]
    fill_in(page, "End", "failed")
    assert shown(page) == ["3.1"]
    assert "Left out, too_long: it does not fit" in page.text(".answer")
    assert "1 more answer to this prompt does not fit the filters." in page.text(".listing-item")
    fill_in(page, "End", "")
    fill_in(page, "Kept", "random")
    assert shown(page) == ["3.0", "3.1"]
    fill_in(page, "Score, to", "3")
    # What has no score is in no range of scores.
    assert shown(page) == ["3.0"]
    fill_in(page, "Kept", "")
    fill_in(page, "Tokens, from", "10")
    assert shown(page) == ["3.3"]
    fill_in(page, "Dimension", "1")
    assert page.text(".listing-status") == "0 of 30 prompts"


def test_words_are_found_over_several_tokens(page: Page) -> None:
    fill_in(page, "Find", "slowly")
    found = page.evaluate("[...document.querySelectorAll('.found')].map((one) => one.textContent)")
    assert found[:2] == ["\nslow", "ly"]
