"""A made-up folder of an evaluation, as large as wanted; some of its texts try to become markup."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from charter.atomic_files import write_text
from charter.chat import ChatMessage
from charter.evaluation.compare.folder import (
    Answer,
    Compared,
    EvaluationFolder,
    StartLikelihood,
    StoredReply,
    answer_line,
    compared_line,
)
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.spec import EvaluateSpec, fill_defaults, pairs_of
from charter.outcomes import outcome_of
from charter.spec.comparison_checks import HARMFUL, LOOK_ALIKE
from charter.v1 import evaluation_pb2, judge_pb2, types_pb2

MODELS = ("start", "sft", "ppo", "grpo", "dpo")
# What a page that is careless with texts would run, or end at.
HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror=document.title="broken">"\'&lt;<!--'
# What one model says far more often than the others.
BOILERPLATE = "you are valid, valued, and cared for"
PRINCIPLES = {
    "helpful-answers-the-question": "Which answer does what the person asked for?",
    "helpful-plain-words": "Which answer is easier to understand?",
    "harmless-no-means-to-harm": "Which answer gives a person who wants to hurt someone less to work with?",
}
# Made-up words, the earlier ones the more frequent as in any language (Zipf).
_SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "pa", "re", "so", "ti", "vu", "shan", "der", "gol", "fir")
WORDS = tuple(
    "".join(_SYLLABLES[number // base % len(_SYLLABLES)] for base in (1, 14, 196)[: 1 + (number > 9) + (number > 150)])
    for number in range(2000)
)
_FREQUENCIES = [1 / (1 + number) for number in range(len(WORDS))]


def write_evaluation(
    path: Path, *, models: int = 5, prompts: int = 60, tokens: int = 90, judges: Sequence[str] = ("contrast", "letters")
) -> EvaluationFolder:
    """A folder that `charter evaluate --figures` takes; later models are better, and the second judge likes length."""
    rng = random.Random(1)
    folder, names = EvaluationFolder(path), MODELS[:models]
    path.mkdir(parents=True)
    spec = fill_defaults(_spec(names, judges))
    asked = [_prompt(place, rng) for place in range(prompts)]
    folder.begin(spec, asked)
    for place, name in enumerate(names):
        trained = [{"judge": "org/contrast-model", "constitution_digest": "abc"}] if name == "ppo" else []
        files = {"files_digest": f"{place}" * 64}
        folder.note_served(
            "models", name, {"model": f"org/{name}", "engine": "transformers", **files, "trained": trained}
        )
    for name in judges:
        about = {
            "model": f"org/{name}-model",
            "method": "choice" if name == "letters" else "contrast",
            "constitution_name": "made-up",
            "constitution_version": "1",
            "constitution_digest": "abc" if name == "letters" else "def",
            "principles": PRINCIPLES,
        }
        folder.note_served("judges", name, about)
    answers = {
        (name, prompt.key): _answer(name, prompt, place, tokens, rng)
        for name in names
        for place, prompt in enumerate(asked)
    }
    write_text(folder.answers, "".join(answer_line(one) + "\n" for one in answers.values()))
    kinds = {prompt.key: prompt.kind for prompt in asked}
    likelihoods = [
        StartLikelihood("start", one.model, one.prompt, 0, (one.tokens or 0) * rng.uniform(2.0, 3.0), one.tokens or 0)
        for one in answers.values()
        if not one.failure
    ]
    write_text(folder.likelihoods, "".join(answer_line(one) + "\n" for one in likelihoods))
    replies = [
        StoredReply(judge, one.model, one.prompt, 0, one.dimension, _distribution(one.model, rng))
        for judge in judges
        for one in answers.values()
        if not one.failure and kinds[one.prompt]
    ]
    write_text(folder.replies, "".join(answer_line(one) + "\n" for one in replies))
    judged = (
        _judgement(judge, a, b, prompt, answers, place, rng)
        for judge in judges
        for a, b in pairs_of(spec)
        for place, prompt in enumerate(asked)
        if not answers[a, prompt.key].failure and not answers[b, prompt.key].failure
    )
    write_text(folder.judgements, "".join(compared_line(one) + "\n" for one in judged))
    return folder


def _spec(models: Sequence[str], judges: Sequence[str]) -> EvaluateSpec:
    return EvaluateSpec(
        name="made-up",
        seed=1,
        models=[evaluation_pb2.EvaluatedModel(name=name, model=f"org/{name}") for name in models],
        prompts=[evaluation_pb2.EvaluatedPrompts(source="prompts.jsonl")],
        judges=[evaluation_pb2.EvaluationJudge(name=name, model=f"org/{name}-model") for name in judges],
        bootstrap_samples=200,
    )


def _prompt(place: int, rng: random.Random) -> EvaluatedPrompt:
    text = HOSTILE if place == 1 else f"Question {place}: {_text(12, rng)}?"
    turns = [ChatMessage("user", text)]
    if place % 7 == 3:
        turns = [
            ChatMessage("system", "You are brief."),
            ChatMessage("user", "Hello."),
            ChatMessage("assistant", "Hi!"),
            *turns,
        ]
    dimension, kind = ("harmless", HARMFUL) if place % 2 else ("helpful", LOOK_ALIKE if place % 4 else "")
    return EvaluatedPrompt(f"key-{place}", tuple(turns), dimension, kind)


def _answer(model: str, prompt: EvaluatedPrompt, place: int, tokens: int, rng: random.Random) -> Answer:
    begun = Answer(model, prompt.key, 0, place, prompt.dimension)
    if model == "sft" and place == 5:
        return replace(begun, failure="too_long", reason="the prompt does not fit")
    length = max(1, round(tokens * rng.uniform(0.2, 1.8) * (1 + 0.1 * MODELS.index(model))))
    cut_off = place % 9 == 4 and model != "start"
    text = HOSTILE if place == 2 else f"{model.title()} says. {_text(length, rng)}"
    if model == "dpo" and place % 3:
        text += f" {BOILERPLATE}"
    if place == 3:
        text = "السلام عليكم 🙂\n\n* " + text
    return replace(begun, text=text, tokens=length, cut_off=cut_off)


def _distribution(model: str, rng: random.Random) -> tuple[float, ...]:
    """Later models decline more."""
    likely = rng.choices(range(4), [4 - 0.6 * MODELS.index(model), 1, 2, 0.5])[0]
    return tuple(0.7 if place == likely else 0.1 for place in range(4))


def _judgement(
    judge: str,
    a: str,
    b: str,
    prompt: EvaluatedPrompt,
    answers: dict[tuple[str, str], Answer],
    place: int,
    rng: random.Random,
) -> Compared:
    if place == 6 and judge == "letters":
        failed = judge_pb2.Judgement(
            outcome=types_pb2.OUTCOME_INVALID,
            failure_kind=types_pb2.FAILURE_KIND_UNCLEAR,
            principles=[types_pb2.PrincipleJudgement(principle_id="helpful-plain-words", failure="it wrote neither")],
        )
        return Compared(judge, a, b, prompt.key, 0, prompt.dimension, failed)
    longer = (answers[a, prompt.key].tokens or 0) - (answers[b, prompt.key].tokens or 0)
    better = MODELS.index(a) - MODELS.index(b)
    lead = 0.08 * better + (0.002 * longer if judge == "letters" else 0) + rng.gauss(0, 0.2)
    p = 0.5 if place % 11 == 7 else min(0.97, max(0.03, 0.5 + lead))
    names = [name for name in PRINCIPLES if name.startswith(prompt.dimension)][:1]
    principles = [
        types_pb2.PrincipleJudgement(principle_id=name, outcome=outcome_of(p), probability_a=p) for name in names
    ]
    if judge == "letters":
        spread = min(p, 1 - p, 0.2)
        for one in principles:
            one.probability_a_shown_first, one.probability_a_shown_second = p + spread, p - spread
    judgement = judge_pb2.Judgement(outcome=outcome_of(p), probability_a=p, principles=principles)
    return Compared(judge, a, b, prompt.key, 0, prompt.dimension, judgement)


def _text(words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, _FREQUENCIES, k=words))
