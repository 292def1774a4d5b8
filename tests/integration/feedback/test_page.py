"""The feedback page in a real Chromium, on a real policy service (fake engine) and a real preference service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.v1 import judge_pb2, types_pb2

from tests.support.chromium import Browser, Page
from tests.support.comparisons import comparison
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


def sign_in(browser: Browser, url: str, name: str) -> Page:
    page = browser.new_page(f"{url}/#token={TOKENS[name]}")
    page.wait("document.querySelector('#labeller').innerText !== ''")
    return page


def progress(page: Page, words: str) -> None:
    page.wait(f"document.querySelector('.progress p').innerText === {json.dumps(words)}")


def test_a_full_session_by_keyboard_and_mouse(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    files = (write_pairs(tmp_path / "pairs.jsonl", 5),)
    settings = config(at, tmp_path, files=files, second_share=0.0, constitution=CONSTITUTION, guided=True)
    with served(settings) as url:
        page = browser.new_page(url)
        page.wait("!document.querySelector('#view-sign-in').hidden")
        page.write("wrong token")
        page.press("Enter")
        page.wait("document.querySelector('#view-sign-in .error').innerText.includes('Nobody has this token')")
        page.evaluate("document.querySelector('#token').value = ''")
        page.evaluate("document.querySelector('#token').focus()")
        page.write(TOKENS["ann"])
        page.press("Enter")
        page.wait(READY)
        progress(page, "0 of 5 labels, 0 by you")
        assert "token" not in str(page.evaluate("location.href + document.cookie"))

        # Keys: a reason, a rating, A.
        shown = page.text("#view-compare [data-side=left] .text")
        page.press("r")
        page.write("It is shorter. Q and 1 in a text are no commands.")
        page.press("Escape")
        page.press("q")
        page.press("p")
        page.press("ArrowLeft")
        progress(page, "1 of 5 labels, 1 by you")
        (first,) = at.labels()
        assert first.answer_a.text == shown
        assert (first.outcome, first.probability_a) == (types_pb2.OUTCOME_PREFERRED_A, 1.0)
        assert (first.answer_a.rating, first.answer_b.rating) == (types_pb2.RATING_UP, types_pb2.RATING_DOWN)
        assert first.rationale == "It is shorter. Q and 1 in a text are no commands."
        assert (first.labeller, first.constitution_digest) == ("ann", "digest")
        assert first.judgements[0].principle_id in ("kind", "safe")

        # The mouse: B, with another principle than the one shown, then undo and a tie instead.
        page.wait(READY)
        question = page.text("#view-compare .prompt")
        page.evaluate("document.querySelector('#view-compare select').value = ''")
        page.click("#view-compare [data-choice=right]")
        progress(page, "2 of 5 labels, 2 by you")
        page.wait(READY)
        page.click("#view-compare [data-action=undo]")
        page.wait(f"{READY} && document.querySelector('#view-compare .prompt').innerText === {json.dumps(question)}")
        page.press("t")
        page.wait("document.querySelector('#saved').innerText === 'All saved'")
        progress(page, "2 of 5 labels, 2 by you")
        _, second = at.labels()
        assert (second.outcome, list(second.judgements)) == (types_pb2.OUTCOME_TIE, [])

        # Skip one, label the rest.
        page.wait(READY)
        page.press("s")
        page.wait(f"{READY} && document.querySelector('#view-compare .prompt').innerText !== {json.dumps(question)}")
        page.press("2")
        progress(page, "3 of 5 labels, 3 by you")
        page.wait(READY)
        page.press("ArrowRight")
        page.wait("document.querySelector('.empty').innerText.includes('Nothing waits for you')")
        assert len({one.prompt[0].content for one in at.labels()}) == 4

        page.click("[data-view=statistics]")
        page.wait("document.querySelectorAll('#view-statistics .card').length > 0")
        assert "4 of 5 labels" in page.text("#view-statistics")
        page.click("#sign-out")
        page.wait("!document.querySelector('#view-sign-in').hidden")
        assert page.evaluate("fetch('/api/statistics').then((answer) => answer.status)") == 401


def test_a_lost_connection_loses_nothing(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    files = (write_pairs(tmp_path / "pairs.jsonl", 3),)
    settings = config(at, tmp_path, files=files, second_share=0.0)
    with served(settings) as url:
        page = sign_in(browser, url, "ann")
        page.wait(READY)
        page.offline(True)
        page.press("ArrowLeft")
        page.wait("document.querySelector('#saved').innerText === '1 not sent yet'")
        page.wait("document.querySelector('.empty').innerText.includes('Your labels are safe')")
        assert at.labels() == []
        page.offline(False)
        progress(page, "1 of 3 labels, 1 by you")
        assert len(at.labels()) == 1

        # The label arrives, its answer does not: it is sent again, and stored once.
        page.wait(READY)
        page.evaluate(
            "(() => { const real = window.fetch; window.fetch = async (path, options) => {"
            " const answer = await real(path, options);"
            " if (path === '/api/labels') { window.fetch = real; throw new TypeError('lost'); }"
            " return answer; }; })()"
        )
        page.press("ArrowLeft")
        progress(page, "2 of 3 labels, 2 by you")
        assert len(at.labels()) == 2

        # The tab is closed with a label that is not sent: the next visit sends it.
        page.wait(READY)
        page.offline(True)
        page.press("ArrowRight")
        page.wait("document.querySelector('#saved').innerText === '1 not sent yet'")
        port = int(url.rpartition(":")[2])
    # The server is gone and comes again, too.
    with served(settings, port) as url:
        page.offline(False)
        page.open(url)
        progress(page, "3 of 3 labels, 3 by you")
        assert len(at.labels()) == 3
        page.wait("document.querySelector('.empty').innerText.includes('All done')")


def test_two_labellers_at_once(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    """Every pair is labelled by both; they agree on four of five answers."""
    files = (write_pairs(tmp_path / "pairs.jsonl", 5),)
    with served(config(at, tmp_path, files=files, second_share=1.0)) as url:
        pages = {name: sign_in(browser, url, name) for name in TOKENS}
        for done in range(5):
            for name, page in pages.items():
                page.wait(READY)
                wanted = (
                    "two" if name == "ben" and page.text("#view-compare .prompt").endswith("Question 4?") else "one"
                )
                left = page.text("#view-compare [data-side=left] .text")
                page.press("ArrowLeft" if left.endswith(wanted) else "ArrowRight")
                page.wait(f"document.querySelector('.progress p').innerText.endsWith(', {done + 1} by you')")
        stored = at.labels()
        assert len(stored) == 10
        assert {(one.labeller, one.prompt[0].content) for one in stored} == {
            (name, f"Question {n}?") for name in TOKENS for n in range(5)
        }
        page = pages["ann"]
        page.click("[data-view=statistics]")
        page.wait("document.querySelectorAll('#view-statistics .card').length > 0")
        shown = page.text("#view-statistics")
        # "one" is the smaller text: Ann says first five times, Ben four times. p_o = 0.8, p_e = 0.8.
        assert "κ 0.00" in shown
        assert "the same label on 80 %" in shown


def test_a_chat_streams_and_its_choice_goes_on(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    with served(config(at, tmp_path)) as url:
        page = sign_in(browser, url, "ben")
        page.wait("!document.querySelector('#view-chat').hidden")
        page.evaluate(
            "window.seen = new Set(); new MutationObserver(() => window.seen.add("
            "document.querySelector('#view-chat [data-side=left] .text').textContent.length)"
            ").observe(document.querySelector('#view-chat'), {subtree: true, childList: true, characterData: true})"
        )
        page.write("Hello there")
        page.press("Enter")
        page.wait("!document.querySelector('#view-chat [data-choice]').disabled")
        # Nothing, a part and more: a slow page gets several tokens at once.
        assert page.evaluate("window.seen.size") > 2
        right = page.text("#view-chat [data-side=right] .text")
        page.press("ArrowRight")
        page.wait(
            "document.querySelector('#saved').innerText === 'All saved' && document.activeElement.id === 'message'"
        )
        (stored,) = at.labels()
        assert (stored.answer_b.text, stored.answer_b.model) == (right, "fake")
        assert stored.answer_b.HasField("weight_version")
        assert stored.outcome == types_pb2.OUTCOME_PREFERRED_B
        assert right in page.text(".conversation")
        page.write("And then?")
        page.press("Enter")
        page.wait("!document.querySelector('#view-chat [data-choice]').disabled")
        page.press("t")
        page.wait("document.querySelector('#saved').innerText === 'All saved'")
        page.wait("document.querySelectorAll('.conversation .turn').length === 4")
        assert [turn.content for turn in at.labels()[1].prompt] == ["Hello there", right, "And then?"]


def test_pairs_of_a_run_are_blind_and_keep_their_place(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    source = comparison(
        "<b>bold</b> & \u202e\U0001f701", run_id="run-1", split=types_pb2.SPLIT_HELD_OUT, dimension="helpful"
    )
    source.answer_a.model, source.answer_b.model = "secret-model-1", "secret-model-2"
    source.answer_a.cut_off, source.answer_b.cut_off = True, False
    at.add(source, comparison("other run", run_id="run-2"))
    with served(config(at, tmp_path, run="run-1")) as url:
        page = sign_in(browser, url, "ann")
        page.wait(READY)
        assert "<b>bold</b> &" in page.text("#view-compare .answers")
        assert page.evaluate("document.querySelectorAll('#view-compare .answer b').length") == 0
        marked = "#view-compare .answer:has(.cut-off:not([hidden]))"
        assert page.evaluate(f"document.querySelectorAll('{marked}').length") == 1
        assert "<b>bold</b>" in page.text(marked)
        answer = page.evaluate("fetch('/api/next', {method: 'POST', body: '{}'}).then((answer) => answer.text())")
        assert "secret-model" not in answer
        page.press("ArrowLeft")
        page.wait("document.querySelector('.empty').innerText.includes('All done')")
    human = at.labels()[-1]
    assert (human.run_id, human.split, human.dimension) == ("run-1", types_pb2.SPLIT_HELD_OUT, "helpful")
    assert human.answer_a.model.startswith("secret-model")
    assert {answer.text: answer.cut_off for answer in (human.answer_a, human.answer_b)} == {
        source.answer_a.text: True,
        source.answer_b.text: False,
    }


def test_answers_that_the_token_limit_ended_are_marked(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    with served(config(at, tmp_path, max_new_tokens=4)) as url:
        page = sign_in(browser, url, "ann")
        page.write("Hello there")
        page.press("Enter")
        page.wait("!document.querySelector('#view-chat [data-choice]').disabled")
        for side in ("left", "right"):
            assert "Cut off here by the token limit" in page.text(f"#view-chat [data-side={side}]")
        page.press("t")
        page.wait("document.querySelector('#saved').innerText === 'All saved'")
    (stored,) = at.labels()
    assert (stored.answer_a.cut_off, stored.answer_b.cut_off) == (True, True)


def test_what_a_page_refuses(browser: Browser, at: Addresses, tmp_path: Path) -> None:
    files = (write_pairs(tmp_path / "pairs.jsonl", 1),)
    with served(config(at, tmp_path, files=files)) as url:
        page = sign_in(browser, url, "ann")
        page.wait(READY)

        def post(path: str, body: object) -> list[object]:
            options = json.dumps({"method": "POST", "body": json.dumps(body)})
            found = page.evaluate(
                f"fetch('{path}', {options}).then(async (answer) => [answer.status, (await answer.json()).error])"
            )
            assert isinstance(found, list)
            return found

        label = {"id": "label-0001", "pair": "unknown", "choice": "left"}
        status, words = post("/api/labels", label)
        assert (status, "does not know the pair" in str(words)) == (400, True)
        status, words = post("/api/labels", {**label, "choice": "both"})
        assert (status, "choice" in str(words)) == (400, True)
        status, words = post("/api/labels", {**label, "labeller": "ben"})
        assert (status, "labeller" in str(words)) == (400, True)
        status, words = post("/api/chat", {"messages": [{"role": "assistant", "content": "Hi"}]})
        assert (status, "alternate" in str(words)) == (400, True)
        # A label that is refused for good does not hold up the others.
        page.evaluate(
            "(() => { const box = {waiting: [{kind: 'label', label: "
            + json.dumps(label)
            + ", pair: {id: 'unknown'}}]}; localStorage.setItem('charter-feedback:ann', JSON.stringify(box)); })()"
        )
        page.open(url)
        page.wait("document.querySelector('#problem').innerText.includes('A label was refused')")
        page.wait(READY)
        page.press("ArrowLeft")
        page.wait("document.querySelector('.empty').innerText.includes('All done')")
        assert len(at.labels()) == 1
