"""The feedback page by keyboard alone, on a phone, in light and dark, in a real Chromium."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.v1 import judge_pb2, types_pb2

from tests.support.chromium import Browser, Page
from tests.support.feedback_page import TOKENS, Addresses, config, feedback_services, served, write_pairs

READY = "!document.querySelector('#view-compare [data-choice]').disabled"
CONSTITUTION = judge_pb2.Constitution(
    digest="digest",
    principles=[
        judge_pb2.Principle(id="kind", dimension="helpful", compare="Which is kinder?"),
        judge_pb2.Principle(id="safe", dimension="harmless", compare="Which is safer?"),
    ],
)


@pytest.fixture
def at(tiny_model: Path, tmp_path: Path) -> Iterator[Addresses]:
    with feedback_services(tmp_path, tiny_model) as addresses:
        yield addresses


def tab_to(page: Page, selector: str) -> None:
    """Move the focus with the Tab key, as far as it has to go."""
    for _ in range(60):
        page.press("Tab")
        if page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


def test_everything_by_keyboard_alone(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    files = (write_pairs(tmp_path / "pairs.jsonl", 3),)
    settings = config(at, tmp_path, files=files, second_share=0.0, constitution=CONSTITUTION)
    with served(settings) as url:
        page = browser.new_page(url)
        page.wait("document.activeElement.id === 'token'")
        page.write(TOKENS["ann"])
        page.press("Enter")
        page.wait(READY)
        page.press("?")
        page.wait("document.querySelector('#help').open")
        page.press("Escape")
        page.wait("!document.querySelector('#help').open")

        # A principle by its keys, a reason, a rating that is taken back, and B by Tab and Enter.
        page.press("n")
        page.wait("document.activeElement.matches('.decided select')")
        page.press("ArrowDown")
        page.press("Escape")
        page.press("r")
        page.write("Kinder.")
        page.press("Escape")
        page.press("w")
        page.press("o")
        page.press("o")
        tab_to(page, "[data-choice=right]")
        page.press("Enter")
        page.wait("document.querySelector('.progress p').innerText.startsWith('1 of 3')")
        (label,) = at.labels()
        assert (label.labeller, label.outcome, label.rationale) == ("ann", types_pb2.OUTCOME_PREFERRED_B, "Kinder.")
        assert [one.principle_id for one in label.judgements] == ["kind"]
        assert (label.answer_a.rating, label.answer_b.rating) == (types_pb2.RATING_DOWN, types_pb2.RATING_UNSPECIFIED)

        # Undone, the pair is as it was left; then a tie, a skip, and the statistics.
        page.wait(READY)
        page.press("u")
        page.wait(f"{READY} && document.querySelector('.reason textarea').value === 'Kinder.'")
        assert page.evaluate("document.querySelector('[data-side=left] [data-rating=down]').ariaPressed") == "true"
        page.press("t")
        page.wait("document.querySelector('#saved').innerText === 'All saved'")
        page.wait(READY)
        question = page.text("#view-compare .prompt")
        page.press("s")
        page.wait(f"{READY} && document.querySelector('#view-compare .prompt').innerText !== {json.dumps(question)}")
        assert [one.outcome for one in at.labels()] == [types_pb2.OUTCOME_TIE]
        tab_to(page, "[data-view=statistics]")
        page.press("Enter")
        page.wait("document.querySelectorAll('#view-statistics .card').length > 0")
        tab_to(page, "#sign-out")
        page.press("Enter")
        page.wait("!document.querySelector('#view-sign-in').hidden")


def test_on_a_phone_by_finger(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    """Nothing is cut off, answers are one below the other, and what is tapped is large and within reach."""
    files = (write_pairs(tmp_path / "pairs.jsonl", 2, answer="A rather long answer, " * 40 + "W" * 200),)
    settings = config(at, tmp_path, files=files, second_share=0.0, constitution=CONSTITUTION, guided=True)
    with served(settings) as url:
        page = browser.new_page(f"{url}/#token={TOKENS['ben']}")
        page.looks(360, 740)
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        page.wait(READY)
        for view in ("compare", "chat", "statistics"):
            page.evaluate(f"document.querySelector('[data-view={view}]').click()")
            page.wait(f"!document.querySelector('#view-{view}').hidden")
            assert page.evaluate("document.documentElement.scrollWidth") == 360, view
        tap(page, "[data-view=compare]")
        page.wait("!document.querySelector('#view-compare').hidden")
        left, right = (box(page, f"#view-compare [data-side={side}]") for side in ("left", "right"))
        assert right["top"] >= left["bottom"]
        small = page.evaluate(
            "[...document.querySelectorAll('button')].filter((one) => one.checkVisibility())"
            ".filter((one) => one.offsetHeight < 40 || one.offsetWidth < 40).map((one) => one.innerText)"
        )
        assert small == []
        # However long the answers, the choices are on the screen.
        for choice in ("left", "tie", "right"):
            place = box(page, f"#view-compare [data-choice={choice}]")
            assert 0 <= place["top"] < place["bottom"] <= 740
            assert place["bottom"] - place["top"] >= 44
        tap(page, "#view-compare [data-side=right] [data-rating=up]")
        tap(page, "#view-compare [data-choice=right]")
        page.wait("document.querySelector('.progress p').innerText === '1 of 2 labels, 1 by you'")
        (label,) = at.labels()
        assert (label.outcome, label.answer_b.rating) == (types_pb2.OUTCOME_PREFERRED_B, types_pb2.RATING_UP)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Browser, at: Addresses, tmp_path: Path, dark: bool) -> None:
    files = (write_pairs(tmp_path / "pairs.jsonl", 2),)
    settings = config(at, tmp_path, files=files, second_share=0.0, constitution=CONSTITUTION, guided=True)
    with served(settings) as url:
        page = browser.new_page(url)
        page.looks(1200, 900, dark=dark)
        page.wait("!document.querySelector('#view-sign-in').hidden")
        page.assert_readable()
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert max(paper) < 64 if dark else min(paper) > 192
        page.write(TOKENS["ann"])
        page.press("Enter")
        page.wait(READY)
        page.assert_readable()
        page.press("ArrowLeft")
        page.wait("document.querySelector('.progress p').innerText.startsWith('1 of 2')")
        page.click("[data-view=statistics]")
        page.wait("document.querySelectorAll('#view-statistics .card').length > 0")
        page.assert_readable()
        page.click("[data-view=chat]")
        page.write("Hello")
        page.press("Enter")
        page.wait("!document.querySelector('#view-chat [data-choice]').disabled")
        page.assert_readable()


def box(page: Page, selector: str) -> dict[str, float]:
    found: dict[str, float] = page.evaluate(
        f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
    )
    return found


def tap(page: Page, selector: str) -> None:
    """With a finger, in the middle of an element that is brought into view."""
    page.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    place = box(page, selector)
    point = {"x": place["left"] + place["width"] / 2, "y": place["top"] + place["height"] / 2}
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
