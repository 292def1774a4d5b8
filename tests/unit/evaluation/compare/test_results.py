"""Figures from a folder that was written by hand: agreement of judges, texts, and what is open."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.cli.evaluation.tables import print_results
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.results import Results, compute, write_results
from charter.evaluation.compare.spec import fill_defaults, pairs_of
from charter.evaluation.figures.agreement import cohen_kappa
from charter.v1 import evaluation_pb2, judge_pb2, types_pb2
from rich.console import Console

PROMPTS = 40
CLOSING = "I hope that this helps you with it."
MODELS = ("start", "closing", "same")


def said(model: str, place: int) -> str:
    """`closing` learned an ending, and `same` says what the start says to every second prompt."""
    if model == "same":
        return said("start", place) if place % 2 else "Nothing of use to anybody."
    return f"number {place} of so many words {CLOSING if model == 'closing' else 'that are said'}"


def strict(a: str, b: str, place: int) -> float:
    return 0.9 if place < 30 else 0.2


def mild(a: str, b: str, place: int) -> float:
    return 0.8 if place < 22 else 0.3


JUDGES = {"strict": strict, "mild": mild}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EvaluationFolder:
    folder = EvaluationFolder(tmp_path_factory.mktemp("evaluation"))
    spec = fill_defaults(
        evaluation_pb2.EvaluateSpec(
            name="three",
            models=[evaluation_pb2.EvaluatedModel(name=name, address="x:1") for name in MODELS],
            judges=[evaluation_pb2.EvaluationJudge(name=name, address="y:1") for name in JUDGES],
            bootstrap_samples=200,
        )
    )
    prompts = [
        EvaluatedPrompt(f"p{place}", (ChatMessage("user", f"Question {place}?"),), "") for place in range(PROMPTS)
    ]
    folder.begin(spec, prompts)
    for model in MODELS:
        folder.note_served(
            "models",
            model,
            {"model": model, "engine": "openai", "files_digest": "", "weight_digest": "", "weight_version": 0},
        )
        for place in range(PROMPTS):
            folder.add_answer(Answer(model, f"p{place}", 0, place, "", said(model, place), tokens=5 + place % 3))
    for judge, probability in JUDGES.items():
        folder.note_served(
            "judges", judge, {"model": judge, "method": "choice", "constitution_name": "", "calibration_digest": ""}
        )
        for a, b in pairs_of(spec):
            for place in range(PROMPTS):
                p = 0.5 if said(a, place) == said(b, place) else probability(a, b, place)
                judgement = judge_pb2.Judgement(probability_a=p)
                folder.add_judgement(Compared(judge, a, b, f"p{place}", 0, "", judgement))
    return folder


@pytest.fixture(scope="module")
def results(folder: EvaluationFolder) -> Results:
    spec = folder.read_spec()
    assert spec is not None
    return compute(spec, folder)


def test_judges_are_compared_on_the_pairs_that_somebody_judged(results: Results) -> None:
    (found,) = results.agreements
    assert (found.judge, found.other) == ("strict", "mild")
    # Of three pairs of models on 40 prompts, 20 are of one text twice, which no judge was asked about.
    assert found.pairs == 3 * PROMPTS - PROMPTS // 2
    labels = [
        (strict(a, b, place) > 0.5, mild(a, b, place) > 0.5)
        for a, b in (("closing", "start"), ("same", "start"), ("closing", "same"))
        for place in range(PROMPTS)
        if said(a, place) != said(b, place)
    ]
    assert found.kappa is not None
    assert found.same is not None
    assert found.kappa.value == pytest.approx(cohen_kappa(labels))
    assert found.same.value == pytest.approx(sum(a == b for a, b in labels) / len(labels))
    assert found.same.prompts == PROMPTS


def test_texts_of_each_model_are_measured_against_the_start(results: Results) -> None:
    texts = results.texts
    assert texts["start"].boilerplate is None
    closing = texts["closing"].boilerplate
    assert closing is not None
    assert {one.kind for one in closing.phrases} == {"phrase", "ending"}
    assert all(one.share == 1 and one.share_of_start == 0 for one in closing.phrases)
    start, same = texts["start"].diversity, texts["same"].diversity
    assert start is not None
    assert same is not None
    assert start.same_as_another.value == 0
    assert same.same_as_another.value == 0.5
    assert same.distinct[1].value < start.distinct[1].value


def test_what_is_open_is_told_with_the_prompts_that_would_close_it(results: Results, folder: EvaluationFolder) -> None:
    write_results(results, folder)
    found = json.loads(folder.result.read_text())
    (mild,) = [one for one in found["standings"] if (one["judge"], one["model"]) == ("mild", "same")]
    assert mild["win_rate"]["win_rate"]["low"] < 0.5 < mild["win_rate"]["win_rate"]["high"]
    assert set(mild["prompts_needed"]) == {"win_rate", "length_controlled", "rating"}
    (strict,) = [one for one in found["standings"] if (one["judge"], one["model"]) == ("strict", "closing")]
    assert strict["prompts_needed"]["win_rate"] is None
    for one in (*found["matrix"], *found["agreements"], *found["standings"]):
        for figure, needed in one["prompts_needed"].items():
            estimate = one[figure]["win_rate"] if figure == "win_rate" and one[figure] else one[figure]
            null = {"kappa": 0.0, "rating": 0.0}.get(figure, 0.5)
            is_open = estimate is not None and estimate["low"] <= null <= estimate["high"]
            assert (needed is not None) == (is_open and estimate["value"] != null), one


def test_what_an_earlier_spec_asked_for_counts_in_nothing(folder: EvaluationFolder, tmp_path: Path) -> None:
    other = EvaluationFolder(Path(shutil.copytree(folder.path, tmp_path / "folder")))
    spec = other.read_spec()
    assert spec is not None
    before = compute(spec, other)
    # Of two answers to each prompt, and of another model.
    other.add_answer(Answer("start", "p0", 1, 0, "", "the second answer", tokens=900))
    other.add_answer(Answer("closing", "p0", 1, 0, "", failure="too_long", reason="long"))
    failed = judge_pb2.Judgement(failure_kind=types_pb2.FAILURE_KIND_UNCLEAR)
    other.add_judgement(Compared("strict", "closing", "start", "p0", 1, "", failed))
    other.add_judgement(Compared("strict", "gone", "start", "p0", 0, "", failed))
    assert compute(spec, other) == before


def test_what_is_missing_is_said_and_no_failure(folder: EvaluationFolder, tmp_path: Path) -> None:
    other = EvaluationFolder(Path(shutil.copytree(folder.path, tmp_path / "folder")))
    spec = other.read_spec()
    assert spec is not None
    assert compute(spec, other).missing == {}
    for name, kept in (("answers.jsonl", -1), ("judgements.jsonl", -2)):
        lines = (other.path / name).read_text().splitlines(keepends=True)
        (other.path / name).write_text("".join(lines[:kept]))
    found = compute(spec, other)
    # The last answer is of `same`, the last judgements are by `mild`: one of the two could not be asked for yet.
    assert found.missing == {"answers of same": 1, "judgements of mild": 1}
    assert not any(one.win_rate and one.win_rate.failures for one in found.standings)
    shown = Console(width=220, file=StringIO())
    print_results(found, shown)
    assert isinstance(shown.file, StringIO)
    assert "Not finished: 1 judgements of mild are missing" in shown.file.getvalue()


def test_the_terminal_shows_them(results: Results) -> None:
    shown = Console(width=220, file=StringIO())
    print_results(results, shown)
    assert isinstance(shown.file, StringIO)
    for words in (
        "row preferred to column",
        "strict, mild",
        "open: about so many prompts would tell",
        "distinct 1-grams",
        "Phrases that closing says more than start",
        "… helps you with it . (end)",
        "no perplexity: start is served by an endpoint",
    ):
        assert words in shown.file.getvalue()
    # Each open verdict on a line of its own, and none broken in a narrow terminal.
    narrow = Console(width=80, file=StringIO())
    print_results(results, narrow)
    assert isinstance(narrow.file, StringIO)
    counts = [
        f"{name} {count:,}"
        for one in results.standings
        for name, count in zip(("wins", "long", "rating"), one.prompts_needed().values(), strict=True)
        if count is not None
    ]
    assert counts
    assert [one for one in counts if one not in narrow.file.getvalue()] == []
