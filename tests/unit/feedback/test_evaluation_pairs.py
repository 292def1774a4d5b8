"""In which order pairs of an evaluation's answers are shown."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.evaluation.compare.folder import Answer, EvaluationFolder
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.spec import fill_defaults
from charter.feedback.evaluation import evaluated_pairs
from charter.feedback.pairs import Pair
from charter.held_out import prompt_key
from charter.v1 import evaluation_pb2

MODELS = ("start", "ppo", "dpo", "kto")


def folder_of(path: Path, prompts: int, models: tuple[str, ...] = MODELS) -> EvaluationFolder:
    spec = fill_defaults(
        evaluation_pb2.EvaluateSpec(models=[evaluation_pb2.EvaluatedModel(name=name) for name in models])
    )
    turns = [(ChatMessage("user", f"Prompt {number}"),) for number in range(prompts)]
    asked = [EvaluatedPrompt(prompt_key(one), one, "helpful") for one in turns]
    folder = EvaluationFolder(path)
    path.mkdir(exist_ok=True)
    folder.begin(spec, asked)
    known = folder.read_answers()
    for model in models:
        for prompt in asked:
            answer = Answer(model, prompt.key, 0, 0, "helpful", f"{model} to {prompt.text}", cut_off=True)
            if answer.key not in known:
                folder.add_answer(answer)
    return folder


def models_of(pairs: list[Pair]) -> Counter[frozenset[str]]:
    return Counter(frozenset((one.comparison.answer_a.model, one.comparison.answer_b.model)) for one in pairs)


def test_however_many_are_shown_all_models_have_their_share(tmp_path: Path) -> None:
    pairs = evaluated_pairs(folder_of(tmp_path / "one", 20))
    every = {frozenset(both) for both in combinations(MODELS, 2)}
    assert len(pairs) == 20 * len(every)
    for count in range(len(every), len(pairs)):
        shown = models_of(pairs[:count])
        assert set(shown) == every
        assert max(shown.values()) - min(shown.values()) <= 1
    # The first thirty are of most of the twenty prompts, not of five with six pairs each.
    assert len({one.comparison.prompt[0].content for one in pairs[:30]}) > 10
    assert all(one.comparison.answer_a.cut_off and one.comparison.dimension == "helpful" for one in pairs)


def test_a_model_that_is_added_comes_between_those_that_were_there(tmp_path: Path) -> None:
    before = evaluated_pairs(folder_of(tmp_path / "one", 10, MODELS[:3]))
    after = evaluated_pairs(folder_of(tmp_path / "one", 10))
    old = [one.id for one in after if "kto" not in (one.comparison.answer_a.model, one.comparison.answer_b.model)]
    assert old == [one.id for one in before]
    assert models_of(after[:12]) == dict.fromkeys(models_of(after), 2)


def test_where_all_answers_are_equal_or_failed_there_is_nothing_to_vote_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one", 2, ("start", "ppo"))
    rows = [
        Answer(model, prompt.key, 0, 0, "helpful", "same", failure="refused" if place and model == "ppo" else "")
        for place, prompt in enumerate(folder.read_prompts())
        for model in ("start", "ppo")
    ]
    folder.answers.unlink()
    for row in rows:
        folder.add_answer(row)
    with pytest.raises(ValueError, match="holds no two different answers"):
        evaluated_pairs(folder)
