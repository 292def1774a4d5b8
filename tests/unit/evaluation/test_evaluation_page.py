"""The page of `charter evaluate`: every answer and judgement is in it once, and no text of them is its markup."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from charter.evaluation.compare.folder import EvaluationFolder, answer_line
from charter.evaluation.compare.results import Results, compute
from charter.evaluation.compare.votes import Preference, Vote, text_digest
from charter.evaluation.figures.refusals import Reply
from charter.evaluation.report.evaluation_page import render_page
from charter.evaluation.report.pages import packed
from charter.evaluation.report.side_by_side import side_by_side

from tests.support.evaluation_folder import HOSTILE, MODELS, PRINCIPLES, write_evaluation

PROMPTS = 24


class Tags(HTMLParser):
    """Tags of a page with their attributes, and the texts of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EvaluationFolder:
    return write_evaluation(tmp_path_factory.mktemp("evaluation") / "folder", prompts=PROMPTS)


@pytest.fixture(scope="module")
def results(folder: EvaluationFolder) -> Results:
    spec = folder.read_spec()
    assert spec is not None
    return compute(spec, folder)


@pytest.fixture(scope="module")
def listed(folder: EvaluationFolder, results: Results) -> dict[str, Any]:
    spec = folder.read_spec()
    assert spec is not None
    return side_by_side(spec, folder, results)


@pytest.fixture(scope="module")
def html(results: Results, listed: dict[str, Any]) -> str:
    return render_page(results, listed)


def test_every_answer_and_judgement_is_listed(folder: EvaluationFolder, listed: dict[str, Any]) -> None:
    names, judges = listed["models"], [judge["name"] for judge in listed["judges"]]
    found = {
        (entry["key"], names[place]): answer
        for entry in listed["entries"]
        for place, answer in enumerate(entry["answers"])
    }
    stored = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    assert len(stored) == len(found) == PROMPTS * len(MODELS)
    for one in stored:
        answer = found[one["prompt"], one["model"]]
        assert answer.get("text", "") == one["text"]
        assert answer.get("cut", False) == one["cut_off"]
        assert answer.get("tokens") == (None if one["failure"] else one["tokens"])
    assert found["key-5", "sft"] == {"failure": "too long", "reason": "the prompt does not fit"}
    said = {
        (entry["key"], judges[one["judge"]], names[one["model"]]): one
        for entry in listed["entries"]
        for one in entry.get("replies", ())
    }
    stored = [json.loads(line) for line in folder.replies.read_text().splitlines()]
    assert len(stored) == len(said) > 0
    for one in stored:
        reply = said[one["prompt"], one["judge"], one["model"]]
        assert reply["p"] == max(one["distribution"])
        assert list(Reply).index(reply["says"]) == one["distribution"].index(reply["p"])
    verdicts = {
        (entry["key"], judges[one["judge"]], names[one["a"]], names[one["b"]]): one
        for entry in listed["entries"]
        for one in entry["verdicts"]
    }
    judged = [json.loads(line) for line in folder.judgements.read_text().splitlines()]
    assert len(judged) == len(verdicts)
    for one in judged:
        shown = verdicts[one["prompt"], one["judge"], one["model_a"], one["model_b"]]
        probability = one["judgement"].get("probability_a")
        if probability is None:
            assert (shown["failure"], "side" in shown) == ("unclear", False)
            continue
        assert shown["p"] == pytest.approx(probability, abs=1e-4)
        assert shown["side"] == (probability > 0.5) - (probability < 0.5)
        (by,) = shown["by"]
        (principle,) = one["judgement"]["principles"]
        assert by["id"] == principle["principle_id"]
        assert by.get("first") == pytest.approx(principle.get("probability_a_shown_first"), abs=1e-4)
        assert by.get("second") == pytest.approx(principle.get("probability_a_shown_second"), abs=1e-4)
        orders = (by.get("first", 1), by.get("second", 1))
        assert shown.get("order", False) == (min(orders) < 0.5 < max(orders))


def test_a_page_holds_what_is_listed_and_no_text_is_its_markup(html: str, listed: dict[str, Any]) -> None:
    assert HOSTILE not in html
    assert "document.title" not in html
    page = Tags(html)
    data, script = page.scripts
    assert json.loads(gzip.decompress(base64.b64decode(data))) == listed
    (policy,) = [found["content"] for tag, found in page.tags if tag == "meta" and found.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    loads = {"src", "onload", "onerror"}
    assert [tag for tag, found in page.tags if loads & set(found) or tag in ("link", "img")] == []


def test_a_title_in_a_drawing_is_no_markup(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=4, judges=("contrast",))
    spec = folder.read_spec()
    assert spec is not None
    prompts = folder.prompts.read_text()
    folder.prompts.write_text(prompts.replace('"dimension": "helpful"', json.dumps({"dimension": HOSTILE})[1:-1]))
    results = compute(spec, folder)
    page = Tags(render_page(results, side_by_side(spec, folder, results)))
    assert HOSTILE in results.dimensions()
    assert len(page.scripts) == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_warnings_stand_beside_the_figures_of_their_judge(html: str, results: Results, listed: dict[str, Any]) -> None:
    sections = dict(re.findall(r'<section id="([^"]*)">(.*?)</section>', html, flags=re.DOTALL))
    contrast, letters = sections["judge-1"], sections["judge-2"]
    assert "contrast is the judge that trained ppo" in contrast
    assert contrast.count("Measured by what it was trained on") == 3
    assert "letters judges by the principles that trained ppo" in letters
    assert "Measured by what it was trained on" in sections["overview"]
    assert listed["judges"][0]["remarks"] == results.remarks["contrast"]
    assert listed["judges"][0]["principles"] == PRINCIPLES


def test_figures_stand_in_plots_and_in_the_matrix(html: str, results: Results) -> None:
    for one in results.matrix:
        assert f"{100 * one.win_rate.win_rate.value:.1f}%" in html
    # Both judges, all prompts and each dimension: win rates and ratings, and both judges together.
    assert html.count("<figure") == 2 * 2 + 2
    assert html.count('class="matrix"') == 2 * 3
    for start, end in (("judge-1", "judge-2"), ("overview", "judge-1")):
        section = html[html.index(f'id="{start}"') : html.index(f'id="{end}"')]
        for name in MODELS[1:]:
            assert f">{name}</text>" in section


def test_a_page_names_no_folder_of_a_machine(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=4, judges=("contrast",))
    for kind, name in (("models", "sft"), ("judges", "contrast")):
        about = folder.read_served()[kind][name]
        folder.note_served(kind, name, about | {"model": f"/home/somebody/{name}-weights"})
    spec = folder.read_spec()
    assert spec is not None
    results = compute(spec, folder)
    html = render_page(results, side_by_side(spec, folder, results))
    assert "sft-weights" in html
    assert "contrast-weights" in html
    assert "somebody" not in html


def test_people_are_one_more_judge_and_nobody_is_named(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=4, judges=("contrast",))
    digests = {
        (one.model, one.prompt): text_digest(one.text)
        for one in folder.read_answers().values()
        if one.prompt in ("key-0", "key-3")
    }
    votes: list[tuple[str, str, str, str, Preference]] = [
        ("anna", "key-0", "start", "sft", "left"),
        ("bert", "key-0", "sft", "start", "tie"),
        ("anna", "key-3", "sft", "start", "left"),
    ]
    for who, prompt, left, right, preference in votes:
        shown = digests[left, prompt], digests[right, prompt]
        folder.add_vote(Vote(f"{who}-{prompt}", who, "", prompt, "", left, right, *shown, preference, reason=HOSTILE))
    spec = folder.read_spec()
    assert spec is not None
    results = compute(spec, folder)
    listed = side_by_side(spec, folder, results)
    assert [judge["name"] for judge in listed["judges"]] == ["contrast", "people"]
    found = {entry["key"]: one for entry in listed["entries"] for one in entry["verdicts"] if one["judge"] == 1}
    # A is sft; the answers to key-2 are equal.
    sides = {key: (one["side"], one["p"]) for key, one in found.items()}
    assert sides == {"key-0": (-1, 0.25), "key-2": (0, 0.5), "key-3": (1, 1.0)}
    assert [by["p"] for by in found["key-0"]["by"]] == [0.0, 0.5]
    assert [by["why"] for by in found["key-0"]["by"]] == [HOSTILE] * 2
    assert "anna" not in json.dumps(listed)
    html = render_page(results, listed)
    assert "people by votes, 3 of 2 people" in html
    assert HOSTILE not in html


def test_people_stand_in_the_dimensions_and_with_the_prompts_that_they_voted_on(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=8, judges=("contrast",))
    shown = [text_digest(one.text) for one in folder.read_answers().values() if one.prompt == "key-0"]
    folder.add_vote(Vote("1", "anna", "", "key-0", "helpful", "start", "sft", shown[0], shown[1], "left"))
    spec = folder.read_spec()
    assert spec is not None
    results = compute(spec, folder)
    html = render_page(results, side_by_side(spec, folder, results))
    sections = dict(re.findall(r'<section id="([^"]*)">(.*?)</section>', html, flags=re.DOTALL))
    of = [re.findall(r"<h3>(\w+) <small>(\d+) prompts?<", sections[judge]) for judge in ("judge-1", "judge-2")]
    # One answer of the second model failed.
    assert of == [[("all", "7"), ("helpful", "4"), ("harmless", "3")], [("helpful", "1")]]


def test_what_answers_are_like_stands_in_the_page(html: str, results: Results) -> None:
    section = html[html.index('id="texts"') : html.index('id="answers"')]
    for one in results.texts.values():
        assert one.nats_per_token is not None
        assert f"{one.nats_per_token.value:.2f} <small>" in section
    found = results.texts["dpo"].boilerplate
    assert found is not None
    assert any("cared for" in phrase.text for phrase in found.phrases)
    for phrase in found.phrases:
        assert phrase.text in section
    for judge, own in (("contrast", "judge-1"), ("letters", "judge-2")):
        section = html[html.index(f'id="{own}"') :]
        section = section[: section.index("</section>")]
        for of_judge in (one for one in results.refusals if one.judge == judge):
            assert of_judge.refusals is not None
            for rates in (of_judge.refusals.harmful, of_judge.refusals.harmless):
                assert f"{100 * rates.declined.value:.1f}% <small>" in section
    agreement = html[html.index('id="agreement"') : html.index('id="judge-1"')]
    for pair in results.agreements:
        assert pair.kappa is not None
        assert f"{pair.kappa.value:.2f} <small>" in agreement


def test_a_page_tells_no_address(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=3, judges=("contrast",))
    reasons = (
        "the endpoint https://secret.example.org/v1 does not serve m: Connection error.. Is it running?",
        "failed to connect to ipv4:10.0.0.7:443",
        "the policy service at localhost:50051 left it out",
    )
    failed = [
        replace(one, text="", failure="unavailable", reason=reason)
        for one, reason in zip(folder.read_answers().values(), reasons, strict=False)
    ]
    folder.answers.write_text("".join(answer_line(one) + "\n" for one in failed))
    spec = folder.read_spec()
    assert spec is not None
    listed = side_by_side(spec, folder, compute(spec, folder))
    told = json.dumps(listed)
    assert not re.search(r"secret|10\.0\.0\.7|50051", told)
    assert "the endpoint (an address) does not serve m: Connection error.. Is it running?" in told
    assert "to ipv4:(an address)" in told


def test_what_cannot_be_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        packed({"p": float("nan")})


def test_an_evaluation_that_has_begun_has_a_page(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "folder", models=2, prompts=3, judges=("contrast",))
    folder.judgements.write_text("")
    folder.answers.write_text(folder.answers.read_text().splitlines()[0] + "\n")
    spec = folder.read_spec()
    assert spec is not None
    results = compute(spec, folder)
    listed = side_by_side(spec, folder, results)
    assert [answer is None for entry in listed["entries"] for answer in entry["answers"]] == [False] + [True] * 5
    assert "Answers side by side" in render_page(results, listed)


def test_prompts_without_a_dimension_are_not_called_all(results: Results, listed: dict[str, Any]) -> None:
    def unnamed(one: Any) -> Any:
        return replace(one, dimension="") if one.dimension == "harmless" else one

    prompts = {name if name != "harmless" else "": count for name, count in results.prompts.items()}
    standings = tuple(map(unnamed, results.standings))
    html = render_page(replace(results, standings=standings, matrix=(), prompts=prompts), listed)
    assert "<h3>none given " in html
    assert "<h3>All prompts " not in html
