"""An evaluation's page in a real Chromium: its answers are found, paged, read blind, and never become markup."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.evaluation.compare.folder import EvaluationFolder
from charter.evaluation.compare.results import compute
from charter.evaluation.report.evaluation_page import write_page

from tests.support.chromium import Browser, Page
from tests.support.evaluation_folder import HOSTILE, MODELS, WORDS, write_evaluation

PROMPTS = 60
# What the models of the first prompt are called.
NAMES = "[...document.querySelector('.entry').querySelectorAll('h4')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EvaluationFolder:
    made = write_evaluation(tmp_path_factory.mktemp("evaluation") / "folder", prompts=PROMPTS)
    spec = made.read_spec()
    assert spec is not None
    write_page(compute(spec, made), spec, made)
    return made


@pytest.fixture
def page(browser: Browser, folder: EvaluationFolder) -> Page:
    opened = browser.new_page(folder.report.as_uri())
    opened.wait("document.querySelectorAll('.entry').length > 0")
    return opened


def status(page: Page) -> str:
    return page.text(".listing-status")


def titles(page: Page) -> list[str]:
    return list(page.evaluate("[...document.querySelectorAll('.entry h3')].map((one) => one.textContent)"))


def choose(page: Page, label: str, words: str) -> None:
    """Choose in the menu of this label."""
    page.evaluate(
        f"""(() => {{
          const label = [...document.querySelectorAll('.listing-controls label')]
            .find((one) => one.firstChild.textContent === {json.dumps(label)});
          const select = label.querySelector('select');
          select.value = [...select.options].find((one) => one.text === {json.dumps(words)}).value;
          select.dispatchEvent(new Event('input', {{bubbles: true}}));
        }})()"""
    )


def find(page: Page, words: str) -> None:
    page.press("/")
    page.write(words)


def open_judgements(page: Page) -> None:
    page.evaluate("document.querySelector('.judgements').open = true")
    page.wait("document.querySelector('.judgements table')")


def judgements(folder: EvaluationFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.judgements.read_text().splitlines()]


def of(count: int) -> str:
    return f"{count} of {PROMPTS} prompts"


def test_texts_stay_texts(page: Page) -> None:
    assert page.evaluate("document.title").startswith("made-up")
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    entry = "document.querySelectorAll('.entry')[%d].querySelector('%s').textContent"
    assert page.evaluate(entry % (1, ".turn .text")) == HOSTILE
    assert page.evaluate(entry % (2, ".answer .text")) == HOSTILE
    # Marked words leave the text as it is.
    find(page, '"onerror=document"')
    assert status(page) == of(2)
    assert page.evaluate(entry % (0, ".turn .text")) == HOSTILE
    assert page.evaluate("document.querySelectorAll('mark').length") == 1 + len(MODELS)
    assert page.evaluate("document.title").startswith("made-up")


def test_pages_and_keys(page: Page) -> None:
    assert status(page) == f"{PROMPTS} prompts"
    assert titles(page) == [f"Prompt {place}" for place in range(1, 11)]
    page.press("n")
    assert titles(page)[0] == "Prompt 11"
    page.press("j")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Prompt 12"
    page.press("p")
    assert titles(page)[0] == "Prompt 1"
    page.press("p")
    assert titles(page)[0] == "Prompt 1"
    page.press("/")
    page.write("n")
    assert page.evaluate("document.activeElement.value") == "n"
    page.press("Tab")
    choose(page, "Per page", "50")
    assert len(titles(page)) == 50
    page.evaluate("document.querySelector('.listing-pager input').focus()")
    page.evaluate("document.activeElement.select()")
    page.write("2")
    page.press("Enter")
    assert titles(page)[0] == "Prompt 51"
    assert len(titles(page)) == PROMPTS - 50


def test_what_is_found_is_what_the_files_say(page: Page, folder: EvaluationFolder) -> None:
    answers = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    judged = judgements(folder)
    word = WORDS[100]
    find(page, f"{word} ppo")
    texts: dict[str, list[str]] = {}
    for line in folder.prompts.read_text().splitlines():
        prompt = json.loads(line)
        texts[prompt["key"]] = [turn["content"] for turn in prompt["messages"]]
    for one in answers:
        texts[one["prompt"]].append(one["text"])
    together = {key: "\n".join(found).lower() for key, found in texts.items()}
    holding = sum(word in text and "ppo" in text for text in together.values())
    assert 0 < holding < PROMPTS
    assert status(page) == of(holding)
    choose(page, "in", "answers of ppo")
    ppo = {one["prompt"]: one["text"].lower() for one in answers if one["model"] == "ppo"}
    assert status(page) == of(sum(word in text and "ppo" in text for text in ppo.values()))
    page.click(".listing-head button")
    assert status(page) == f"{PROMPTS} prompts"

    choose(page, "Dimension", "harmless")
    assert status(page) == of(PROMPTS // 2)
    page.click(".listing-head button")

    # Of each pair the start, or the earlier model, is B.
    def prompts(rule: Any) -> int:
        return len({one["prompt"] for one in judged if rule(one, one["judgement"].get("probability_a"))})

    choose(page, "verdict", "is preferred to")
    choose(page, "Model", "start")
    choose(page, "other model", "dpo")
    choose(page, "by", "letters")
    chosen = ("letters", "dpo", "start")
    expected = prompts(
        lambda one, p: (one["judge"], one["model_a"], one["model_b"]) == chosen and p is not None and p < 0.5
    )
    assert 0 < expected < PROMPTS
    assert status(page) == of(expected)
    choose(page, "verdict", "could not be judged against")
    assert status(page) == of(1)
    assert titles(page) == ["Prompt 7"]
    choose(page, "verdict", "ties with")
    ties = prompts(lambda one, p: (one["judge"], one["model_a"], one["model_b"]) == chosen and p == 0.5)
    assert 0 < ties < PROMPTS
    assert status(page) == of(ties)
    page.click(".listing-head button")

    choose(page, "verdict", "divides the judges against")
    found: dict[tuple[str, ...], list[float]] = {}
    for one in judged:
        pair = (one["prompt"], one["model_a"], one["model_b"])
        found.setdefault(pair, []).append(one["judgement"].get("probability_a", 0.5))
    assert status(page) == of(len({pair[0] for pair, both in found.items() if min(both) < 0.5 < max(both)}))
    page.click(".listing-head button")
    choose(page, "Order", "judges furthest apart")
    apart = max(found, key=lambda pair: max(found[pair]) - min(found[pair]) if len(found[pair]) == 2 else 0)
    assert titles(page)[0] == f"Prompt {int(apart[0].removeprefix('key-')) + 1}"
    choose(page, "Order", "as asked")

    choose(page, "verdict", "is judged by its position against")
    order = prompts(
        lambda one, _: any(
            (by.get("probability_a_shown_first", 0.5) - 0.5) * (by.get("probability_a_shown_second", 0.5) - 0.5) < 0
            for by in one["judgement"]["principles"]
        )
    )
    assert status(page) == of(order)
    page.click(".listing-head button")
    page.evaluate("[...document.querySelectorAll('.tick')].find((one) => one.textContent === 'Cut off').click()")
    assert status(page) == of(len({one["prompt"] for one in answers if one["cut_off"]}))
    choose(page, "Model", "start")
    assert status(page) == of(0)
    assert "Nothing fits" in page.text(".listing-items")


def test_a_judgement_shows_principle_orders_and_whom_the_judge_trained(page: Page) -> None:
    open_judgements(page)
    shown = page.evaluate("document.querySelector('.judgements').textContent")
    assert "helpful-answers-the-question" in shown
    assert "Which answer does what the person asked for?" in shown
    assert "Measured by what it was trained on: contrast is the judge that trained ppo" in shown
    page.evaluate("[...document.querySelectorAll('.shown-models input')].slice(1, 4).forEach((one) => one.click())")
    assert page.evaluate(NAMES) == ["start the start", "dpo"]


def test_blind_hides_every_name_and_compares_at_the_end(page: Page, folder: EvaluationFolder) -> None:
    choose(page, "Model", "dpo")
    choose(page, "verdict", "is preferred to")
    page.click("#blind button")
    assert status(page) == f"{PROMPTS} prompts"
    # Whose column goes would be told by its tick.
    assert page.evaluate("document.querySelector('.shown-models').matches(':disabled')")
    names = "[...document.querySelectorAll('.answer h4')].map((one) => one.textContent)"
    assert set(page.evaluate(names)) == {f"Answer {letter}" for letter in "ABCDE"}
    without_texts = page.evaluate(
        "(() => { const shown = document.querySelector('.listing-items').cloneNode(true);"
        " shown.querySelectorAll('.text').forEach((one) => one.remove());"
        " return shown.innerHTML + document.querySelector('#blind [role=status]').innerHTML; })()"
    )
    assert not [name for name in (*MODELS, "contrast", "letters") if name in without_texts]
    assert page.evaluate("document.querySelectorAll('.judgements, .listing-items .badge').length") == 0
    # Whose an answer is: its text begins with it.
    whose = "(answer.querySelector('.text')?.textContent || '').split(' says.')[0].replace(/^[^a-z]*/i, '')"
    orders = page.evaluate(
        "[...document.querySelectorAll('.entry')].map((one) => [...one.querySelectorAll('.answer')]"
        f".map((answer) => {whose}).join())"
    )
    assert len(set(orders[6:])) > 1

    # Note dpo on the first entry and the first answer on the second, by keys; no difference on the third.
    first = orders[0].split(",").index("Dpo") + 1
    page.evaluate("document.querySelector('.entry').focus()")
    page.press(str(first))
    page.press("j")
    page.press("j")
    page.press("0")
    assert "Noted: 2 prompts" in page.text("#blind [role=status]")
    page.evaluate("document.querySelector('.noting button').click()")
    assert sorted(name.removesuffix(" the start") for name in page.evaluate(NAMES)) == sorted(MODELS)
    # What was noted before the names were seen stays.
    page.evaluate("document.querySelector('.noting input:not(:checked)').click()")
    assert page.evaluate(
        "[...document.querySelector('.noting').querySelectorAll('input')].every((one) => one.disabled)"
    )

    page.click("#blind button")
    cells = "[...body.rows].map((row) => [...row.cells].map((one) => one.textContent))"
    rows = page.evaluate(f"[...document.querySelectorAll('#blind tbody')].map((body) => {cells})")
    for judge, agrees, disagrees, ties, _ in rows[0]:
        sides = [
            one["judgement"]["probability_a"] * (1 if one["model_a"] == "dpo" else -1) + (one["model_b"] == "dpo")
            for one in judgements(folder)
            if one["prompt"] == "key-0" and one["judge"] == judge and "dpo" in (one["model_a"], one["model_b"])
        ]
        assert len(sides) == len(MODELS) - 1
        counts = [sum(p > 0.5 for p in sides), sum(p < 0.5 for p in sides), sum(p == 0.5 for p in sides)]
        assert [int(agrees), int(disagrees), int(ties)] == counts
    assert rows[1] == [[name, str(int(name == "dpo"))] for name in MODELS]
    assert "no difference on 1" in page.text("#blind")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_on_any_window(page: Page, width: int, dark: bool) -> None:
    page.looks(width, 900, dark=dark)
    open_judgements(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.assert_readable()
    inputs = "[...document.querySelectorAll('input, select')]"
    assert page.evaluate(f"{inputs}.filter((one) => !one.labels.length && !one.ariaLabel).length") == 0


def test_what_is_printed_are_the_figures(page: Page, tmp_path: Path) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    assert not page.evaluate("document.querySelector('#answers').checkVisibility()")
    assert not page.evaluate("document.querySelector('nav').checkVisibility()")
    assert page.evaluate("document.querySelector('#models').checkVisibility()")
