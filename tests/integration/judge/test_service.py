"""The judge service over a real channel, with a tiny model in process: contrast, outcomes, reload."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from charter.chat import ChatMessage
from charter.judge.calibration import MethodCalibration
from charter.judge.calibration_file import CalibrationFile, write_calibration
from charter.judge.metrics import observe_judgement
from charter.judge.server import JudgeConfig, JudgeRoom, build
from charter.judge.watch import WatchedConstitution
from charter.rpc.channel import QUICK, connect
from charter.rpc.messages import proto_messages
from charter.spec.constitution import Principle, load_constitution, parse_constitution
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2
from prometheus_client import REGISTRY
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.harness import running

CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - id: kind
    dimension: helpful
    compare: Kinder?
    critique: Unkind?
    revise: Be kind.
    follow: Be kind.
    oppose: Be rude.
  - id: relevant
    dimension: helpful
    compare: To the point?
    critique: Off topic?
    revise: Answer.
    follow: Answer the question.
    oppose: Babble.
    oppose_without_prompt: true
  - id: safe
    dimension: harmless
    compare: Safer?
    critique: Unsafe?
    revise: Be safe.
    follow: Be safe.
    oppose: Do harm.
"""
TEMPERATURE = 0.05
OPPOSE_WEIGHT = 0.9
HARMLESS_TEMPERATURE = 0.3


@pytest.fixture(scope="module")
def room(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> JudgeRoom:
    folder = tmp_path_factory.mktemp("judge")
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    methods = {"contrast": MethodCalibration(TEMPERATURE, oppose_weight=OPPOSE_WEIGHT)}
    harmless = {"contrast": MethodCalibration(HARMLESS_TEMPERATURE, oppose_weight=0.5)}
    digest = parse_constitution(CONSTITUTION, "c.yaml").digest
    calibration = CalibrationFile(str(tiny_model), digest, methods, {}, {"harmless": harmless}, ("a1", "b2"))
    write_calibration(folder / "calibration.json", calibration)
    return build(JudgeConfig(str(tiny_model), folder / "constitution.yaml", calibration=folder / "calibration.json"))


@pytest.fixture(scope="module")
def stub(room: JudgeRoom) -> Iterator[judge_pb2_grpc.JudgeServiceStub]:
    with running(room) as addresses, connect(addresses.main) as channel:
        yield judge_pb2_grpc.JudgeServiceStub(channel)


def item(name: str, a: str, b: str, prompt: str = "How are you?", **fields: str) -> judge_pb2.ComparisonItem:
    messages = proto_messages([ChatMessage("user", prompt)])
    return judge_pb2.ComparisonItem(id=name, prompt=messages, answer_a=a, answer_b=b, **fields)


def compare(
    stub: judge_pb2_grpc.JudgeServiceStub, items: Sequence[judge_pb2.ComparisonItem], **options: Any
) -> dict[str, judge_pb2.Judgement]:
    request = judge_pb2.CompareRequest(items=items, options=judge_pb2.JudgingOptions(**options))
    responses = list(stub.Compare(request, timeout=QUICK * 6))
    assert sorted(response.item_id for response in responses) == sorted(one.id for one in items)
    return {response.item_id: response.judgement for response in responses}


def mean_logprob(model: Path, system: str, user: str, answer: str) -> float:
    """The mean log-prob per token of an answer, by transformers alone."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return mean_logprob_after(model, turns, answer)


def mean_logprob_after(model: Path, turns: list[dict[str, str]], answer: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt, rest = tokenizer.encode(text), tokenizer.encode(answer)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([prompt + rest])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(sum(logprobs[index, token] for index, token in enumerate(rest)) / len(rest))


@pytest.mark.parametrize("principle", ["kind", "relevant"])
def test_contrast_is_the_difference_of_mean_log_likelihoods(
    stub: judge_pb2_grpc.JudgeServiceStub, tiny_model: Path, principle: str
) -> None:
    a, b, prompt = "Fine, thank you!", "Go away.", "How are you?"
    rule = load_rule(principle)
    unread = "" if rule.oppose_without_prompt else prompt
    follow, oppose = (
        mean_logprob(tiny_model, system, user, a) - mean_logprob(tiny_model, system, user, b)
        for system, user in ((rule.follow, prompt), (rule.oppose, unread))
    )
    judgement = compare(stub, [item("x", a, b)], principle_id=principle)["x"]
    (one,) = judgement.principles
    assert list(one.evidence) == pytest.approx([follow, oppose], abs=2e-5)
    expected = torch.sigmoid(torch.tensor((follow - OPPOSE_WEIGHT * oppose) / TEMPERATURE, dtype=torch.float64))
    assert judgement.probability_a == pytest.approx(float(expected), abs=1e-3)
    assert not one.HasField("probability_a_shown_first")
    assert judgement.outcome == (
        types_pb2.OUTCOME_PREFERRED_A if judgement.probability_a > 0.5 else types_pb2.OUTCOME_PREFERRED_B
    )
    assert judgement.usage.prompt_tokens > 0


def test_a_principle_is_calibrated_as_its_dimension_is(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    """In an ensemble over all dimensions, each principle by its own."""
    judgement = compare(stub, [item("x", "Fine, thank you!", "Go away.")], ensemble_size=3)["x"]
    calibrations = {"helpful": (OPPOSE_WEIGHT, TEMPERATURE), "harmless": (0.5, HARMLESS_TEMPERATURE)}
    assert {one.dimension for one in judgement.principles} == set(calibrations)
    for one in judgement.principles:
        (follow, oppose), (weight, temperature) = one.evidence, calibrations[one.dimension]
        expected = 1 / (1 + math.exp(-(follow - weight * oppose) / temperature))
        assert one.probability_a == pytest.approx(expected, abs=1e-6)


def test_contrast_scores_the_answers_of_a_conversation_in_its_context(
    stub: judge_pb2_grpc.JudgeServiceStub, tiny_model: Path
) -> None:
    turns = [
        ChatMessage("system", "Short."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Hello."),
        ChatMessage("user", "Bye?"),
    ]
    pair = judge_pb2.ComparisonItem(id="x", prompt=proto_messages(turns), answer_a="Bye!", answer_b="No.")
    (one,) = compare(stub, [pair], principle_id="kind")["x"].principles
    rule = load_rule("kind")
    expected = []
    for system in (rule.follow, rule.oppose):
        # The conversation's own system prompt follows the principle's in one turn.
        given = [{"role": "system", "content": f"{system}\n\nShort."}]
        given += [{"role": turn.role, "content": turn.content} for turn in turns[1:]]
        expected.append(mean_logprob_after(tiny_model, given, "Bye!") - mean_logprob_after(tiny_model, given, "No."))
    assert list(one.evidence) == pytest.approx(expected, abs=2e-5)


def load_rule(principle: str) -> Principle:
    return parse_constitution(CONSTITUTION, "c.yaml").principle(principle)


def test_swapped_pairs_are_complementary(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    texts = [f"Answer {'word ' * index}{index}" for index in range(12)]
    pairs = list(zip(texts, reversed(texts), strict=True))[:6]
    straight = compare(stub, [item(f"{i}", a, b) for i, (a, b) in enumerate(pairs)], ensemble_size=3, seed=1)
    # In another request, so that batches differ.
    swapped = compare(
        stub, [item(f"{i}", b, a) for i, (a, b) in reversed(list(enumerate(pairs)))], ensemble_size=3, seed=1
    )
    for name, judgement in straight.items():
        assert abs(judgement.probability_a - (1 - swapped[name].probability_a)) < 1e-6
        assert {judgement.outcome, swapped[name].outcome} == {
            types_pb2.OUTCOME_PREFERRED_A,
            types_pb2.OUTCOME_PREFERRED_B,
        }


def test_an_ensemble_is_the_mean_of_its_principles(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    judgement = compare(stub, [item("x", "Yes.", "No, never.")], ensemble_size=3)["x"]
    assert {one.principle_id for one in judgement.principles} == {"kind", "relevant", "safe"}
    alone = [
        compare(stub, [item("x", "Yes.", "No, never.")], principle_id=one.principle_id)["x"].probability_a
        for one in judgement.principles
    ]
    assert judgement.probability_a == pytest.approx(sum(alone) / 3, abs=1e-6)


def test_identical_answers_are_a_tie(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    judgement = compare(stub, [item("x", "Same.", "Same.")], ensemble_size=2)["x"]
    assert (judgement.outcome, judgement.probability_a) == (types_pb2.OUTCOME_TIE, 0.5)
    assert judgement.usage.prompt_tokens == 0


@pytest.mark.parametrize(
    ("a", "b", "failure"),
    [
        ("", "Fine.", "answer A is empty"),
        ("Fine.", " \n", "answer B is empty"),
        ("", "", "answer A and B are empty"),
        ("Fine.", "x" * 600, "the model's context holds 512"),
    ],
)
def test_what_cannot_be_judged_is_invalid_and_has_no_number(
    stub: judge_pb2_grpc.JudgeServiceStub, a: str, b: str, failure: str
) -> None:
    judged = compare(stub, [item("bad", a, b), item("good", "Yes.", "No.")])
    bad, good = judged["bad"], judged["good"]
    assert (bad.outcome, bad.HasField("probability_a")) == (types_pb2.OUTCOME_INVALID, False)
    assert failure in bad.principles[0].failure
    assert not bad.principles[0].HasField("probability_a")
    assert good.HasField("probability_a")


def test_an_item_draws_from_its_own_dimension(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    judged = compare(
        stub, [item("a", "Yes.", "No.", dimension="harmless"), item("b", "Yes.", "No.")], dimension="helpful"
    )
    assert judged["a"].principles[0].principle_id == "safe"
    assert judged["b"].principles[0].dimension == "helpful"


def test_an_instruction_takes_the_place_of_the_constitution(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    judged = compare(stub, [item("x", "Oui.", "Yes.")], instruction="Answer in French.")["x"]
    assert judged.principles[0].principle_id == "instruction"
    assert judged.constitution_digest == ""
    assert judged.HasField("probability_a")


@pytest.mark.parametrize(
    ("items", "options", "code", "message"),
    [
        ([item("x", "a", "b")], {"principle_id": "nope"}, grpc.StatusCode.NOT_FOUND, "no principle 'nope'"),
        ([item("x", "a", "b", dimension="nope")], {}, grpc.StatusCode.NOT_FOUND, "helpful"),
        ([item("x", "a", "b")], {"ensemble_size": 4}, grpc.StatusCode.INVALID_ARGUMENT, "has 3 principles"),
        ([item("x", "a", "b")] * 2, {}, grpc.StatusCode.INVALID_ARGUMENT, "items[1].id"),
        ([item("x", "a", "b")], {"chain_of_thought": True}, grpc.StatusCode.INVALID_ARGUMENT, "CHOICE"),
        (
            [item("x", "a", "b")],
            {"method": judge_pb2.JUDGING_METHOD_VERDICT},
            grpc.StatusCode.FAILED_PRECONDITION,
            # "Yes" is three bytes for the tiny model's tokenizer.
            "'Yes' is 3 tokens",
        ),
        ([], {}, grpc.StatusCode.INVALID_ARGUMENT, "items"),
    ],
)
def test_a_wrong_request_is_refused(
    stub: judge_pb2_grpc.JudgeServiceStub,
    items: list[judge_pb2.ComparisonItem],
    options: dict[str, Any],
    code: grpc.StatusCode,
    message: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        compare(stub, items, **options)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is code
    assert message in (caught.value.details() or "")


def test_the_label_says_who_made_it(stub: judge_pb2_grpc.JudgeServiceStub, tiny_model: Path) -> None:
    judged = compare(stub, [item("x", "Yes.", "No.")])["x"]
    served = stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution
    info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
    assert judged.constitution_digest == served.digest
    assert judged.model == info.model.model == str(tiny_model)
    assert judged.method == info.default_method == judge_pb2.JUDGING_METHOD_CONTRAST
    assert served.source_yaml == CONSTITUTION


def test_a_request_larger_than_one_engine_call_comes_back_whole(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    judged = compare(stub, [item(str(index), f"Yes {index}.", f"No {index}.") for index in range(40)])
    assert all(judgement.HasField("probability_a") for judgement in judged.values())


def test_a_changed_constitution_is_taken_while_serving(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(CONSTITUTION)
    with running(build(JudgeConfig(str(tiny_model), file))) as addresses, connect(addresses.main) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        file.write_text(CONSTITUTION.replace("Be kind.", "Be very kind."))
        expected = load_constitution(file).digest
        deadline = time.monotonic() + 60
        while stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution.digest != expected:
            assert time.monotonic() < deadline, "the new constitution was not taken"
        assert compare(stub, [item("x", "Yes.", "No.")])["x"].constitution_digest == expected


async def test_a_principle_that_is_gone_is_no_longer_exported(tmp_path: Path) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(CONSTITUTION.replace("id: kind", "id: fleeting"))
    watched = WatchedConstitution(file)
    judgement = judge_pb2.Judgement(outcome=types_pb2.OUTCOME_TIE)
    judgement.principles.add(
        principle_id="fleeting",
        outcome=types_pb2.OUTCOME_TIE,
        probability_a_shown_first=0.9,
        probability_a_shown_second=0.1,
    )
    observe_judgement(judgement, "choice")
    names = ("principle_judgements", "ordered", "position_biased")

    def exported() -> set[str]:
        samples = [sample for one in REGISTRY.collect() for sample in one.samples]
        return {sample.name for sample in samples if sample.labels.get("principle") == "fleeting"}

    assert exported() == {f"charter_judge_{name}_total" for name in names}
    file.write_text(CONSTITUTION)
    await watched.refresh()
    assert not exported()


async def test_a_broken_change_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(CONSTITUTION)
    watched = WatchedConstitution(file)
    before = watched.current
    file.write_text(CONSTITUTION.replace("follow: Be kind.", "fellow: Be kind."))
    await watched.refresh()
    assert watched.current == before
    assert "principles[0].fellow: unknown field" in caplog.records[0].__dict__["problem"]
    file.unlink()
    await watched.refresh()
    await watched.refresh()
    assert watched.current == before
    # One complaint for the broken file and one for the missing one, not one for every look.
    assert len(caplog.records) == 2
    file.write_text(CONSTITUTION.replace('"1"', '"2"'))
    await watched.refresh()
    assert watched.current.version == "2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "oracle"}, "no judging method 'oracle'; valid methods: choice, verdict, contrast"),
        ({"engine": "abacus"}, "no engine 'abacus'"),
        ({"method": "choice", "calibration": "calibration.json"}, "has no calibration for method choice"),
        ({"constitution": Path("nowhere.yaml")}, "nowhere.yaml"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(
    room: JudgeRoom, tiny_model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    write_calibration(tmp_path / "calibration.json", CalibrationFile("m", "", {"contrast": MethodCalibration()}, {}))
    settings: dict[str, Any] = {"model": str(tiny_model), "constitution": tmp_path / "constitution.yaml"} | change
    if "calibration" in settings:
        settings["calibration"] = tmp_path / settings["calibration"]
    with pytest.raises((ValueError, OSError), match=message):
        build(JudgeConfig(**settings))


def test_a_default_method_that_the_model_cannot_do_fails_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    room = build(JudgeConfig(str(tiny_model), tmp_path / "constitution.yaml", method="verdict"))
    with pytest.raises(ValueError, match="cannot judge by verdict: choice 'Yes' is 3 tokens"), running(room):
        pass


def test_metrics_tell_outcomes_and_tokens(room: JudgeRoom, stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    def count(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    timed = count("charter_judge_comparison_seconds_count", method="contrast")
    given, computed = (count("charter_scoring_tokens_total", kind=kind) for kind in ("given", "computed"))
    ties = {"method": "contrast", "outcome": "tie"}
    before = count("charter_judge_judgements_total", **ties), count("charter_judge_tokens_total", kind="prompt")
    judged = compare(stub, [item("x", "Same.", "Same."), item("y", "Yes.", "No.")])
    assert count("charter_judge_judgements_total", **ties) == before[0] + 1
    assert count("charter_judge_tokens_total", kind="prompt") == before[1] + judged["y"].usage.prompt_tokens
    assert count("charter_judge_comparison_seconds_count", method="contrast") == timed + 2
    # Both answers share the prompt, which is computed once for each of the two system prompts.
    assert count("charter_scoring_tokens_total", kind="computed") - computed < (
        count("charter_scoring_tokens_total", kind="given") - given
    )
