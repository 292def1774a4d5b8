"""The real OpenAI client against a real gateway on a real policy service with a tiny model."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from charter.judge import metrics as judge_metrics
from charter.judge import server as judge_server
from charter.policy.server import PolicyConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.tensors import from_tensor
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.support.gateway import gateway
from tests.support.harness import running

GENERAL = Path(__file__).resolve().parents[3] / "examples" / "constitutions" / "general.yaml"
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(build(PolicyConfig(str(tiny_model), tmp_path_factory.mktemp("staging")))) as found:
        yield found.main


@pytest.fixture(scope="module")
def client(policy: str) -> Iterator[openai.OpenAI]:
    with gateway(policy) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


def generated(policy: str, n: int = 1, **sampling: Any) -> list[policy_pb2.Sample]:
    """What the policy says when it is asked without a gateway."""
    message = types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")
    request = policy_pb2.GenerateRequest(
        prompts=[policy_pb2.GenerationPrompt(messages=[message])],
        sampling=policy_pb2.SamplingParameters(**sampling),
        samples_per_prompt=n,
    )
    with connect(policy) as channel:
        found = list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=QUICK))
    return [one.sample for one in sorted(found, key=lambda one: one.sample_index)]


def test_the_model_is_named_by_its_folder(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "charter")
    assert model.model_extra == {"max_model_len": 512, "engine": "transformers", "weight_version": 0}
    assert client.models.retrieve("tiny") == model


def test_the_judges_model_is_one_to_chat_with_and_to_measure(tiny_model: Path, policy: str) -> None:
    judge = judge_server.build(judge_server.JudgeConfig(str(tiny_model), GENERAL))
    with (
        running(judge) as found,
        gateway(policy, named={"judge": found.main}) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        assert [one.id for one in client.models.list().data] == ["tiny", "judge"]
        before = judge_metrics.TOKENS.labels("completion")._value.get()
        asked = {"messages": HI, "max_tokens": 12, "seed": 3, "logprobs": True}
        own, judges = (client.chat.completions.create(model=name, **asked) for name in ("tiny", "judge"))  # type: ignore[call-overload]
        # One model on two services: free of any constitution it answers the same.
        assert judges.choices == own.choices
        assert judge_metrics.TOKENS.labels("completion")._value.get() - before == judges.usage.completion_tokens
        echoed = {"prompt": "The sky is blue", "max_tokens": 0, "echo": True, "logprobs": 1}
        scores = [client.completions.create(model=name, **echoed).choices for name in ("tiny", "judge")]  # type: ignore[call-overload]
        assert scores[0] == scores[1]
        pieces = list(client.chat.completions.create(model="judge", stream=True, **asked))  # type: ignore[call-overload]
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == judges.choices[0].message.content


def test_a_chat_says_what_the_policy_says(client: openai.OpenAI, policy: str) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_completion_tokens=12, seed=3, n=2, logprobs=True, top_logprobs=2
    )
    expected = generated(policy, n=2, max_new_tokens=12, seed=3, top_logprobs=2)
    assert [one.message.content for one in answer.choices] == [one.text for one in expected]
    for choice, sample in zip(answer.choices, expected, strict=True):
        ends = {policy_pb2.FINISH_REASON_LENGTH: "length", policy_pb2.FINISH_REASON_EOS: "stop"}
        assert choice.finish_reason == ends[sample.finish_reason]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [one.logprob for one in choice.logprobs.content] == from_tensor(sample.logprobs).tolist()
        assert [[top.token for top in one.top_logprobs] for one in choice.logprobs.content] == [
            [top.text for top in one.top] for one in sample.places
        ]
    assert answer.usage is not None
    tokens = sum(len(one.token_ids) for one in expected)
    assert answer.usage.prompt_tokens == len(expected[0].prompt_token_ids)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (tokens, answer.usage.prompt_tokens + tokens)
    assert answer.system_fingerprint == "weights-0"


def test_streamed_pieces_add_up_to_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HI, "max_tokens": 20, "seed": 4, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    texts, logprobs, finish = ["", ""], [[], []], ["", ""]  # type: ignore[var-annotated]
    pieces, usage = 0, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces += 1
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [one.message.content for one in whole.choices]
    assert logprobs == [one.logprobs.content for one in whole.choices]
    assert finish == [one.finish_reason for one in whole.choices]
    assert usage == whole.usage
    # The tiny model writes a token that is no part of a character now and then: not all came in one piece.
    assert pieces > 6


def test_the_clients_own_helper_reads_the_stream(client: openai.OpenAI) -> None:
    # The client makes an error of every answer that its limit has ended.
    with (
        client.chat.completions.stream(model="tiny", messages=HI, max_tokens=6, seed=4) as stream,  # type: ignore[arg-type]
        pytest.raises(openai.LengthFinishReasonError) as ended,
    ):
        stream.get_final_completion()
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=6, seed=4)  # type: ignore[arg-type]
    assert ended.value.completion.choices[0].message.content == whole.choices[0].message.content


def test_echoed_log_probs_are_the_policys_scores(
    client: openai.OpenAI, policy: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["The sky is blue", "Ünder"]
    ids = [tokenizer.encode(text) for text in texts]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=1, echo=True, logprobs=2, temperature=0)
    request = policy_pb2.PolicyServiceScoreRequest(
        prompts=[policy_pb2.GenerationPrompt(token_ids=one) for one in ids], top_logprobs=2
    )
    with connect(policy) as channel:
        scores = sorted(
            policy_pb2_grpc.PolicyServiceStub(channel).Score(request, timeout=QUICK), key=lambda one: one.prompt_index
        )
    sampled = client.completions.create(model="tiny", prompt=ids, max_tokens=1, temperature=0, logprobs=2)
    for choice, score, after, text in zip(answer.choices, scores, sampled.choices, texts, strict=True):
        assert choice.logprobs is not None
        assert after.logprobs is not None
        assert choice.text == text + after.text
        own = [one.token.logprob for one in score.places[1:]]
        assert choice.logprobs.token_logprobs == pytest.approx([None, *own, *(after.logprobs.token_logprobs or ())])
        assert choice.logprobs.top_logprobs is not None
        assert choice.logprobs.top_logprobs[0] is None
        # The token itself is among them, and no text twice: the likeliest is always there.
        for place, top in zip(score.places[1:], choice.logprobs.top_logprobs[1:], strict=False):
            assert max(top.values()) == place.top[0].logprob
            assert top[place.token.text] >= place.token.logprob
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == list(range(len(texts[0]) + 1))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_a_prompt_alone_can_be_scored(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="ab", max_tokens=0, echo=True, logprobs=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "length")
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["a", "b"]


@pytest.mark.parametrize("asked", [{"max_tokens": 1, "temperature": 0}, {"max_tokens": 3, "seed": 1}])
def test_an_echo_streams_too(client: openai.OpenAI, asked: dict[str, Any]) -> None:
    prompt = ["ab", "abc"]
    asked |= {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 1, "n": 2}
    whole = client.completions.create(**asked)
    texts, logprobs = [""] * 4, [[] for _ in range(4)]  # type: ignore[var-annotated]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs[choice.index] += zip(choice.logprobs.text_offset, choice.logprobs.token_logprobs, strict=True)
    assert texts == [one.text for one in whole.choices]
    for found, one in zip(logprobs, whole.choices, strict=True):
        assert [offset for offset, _ in found] == one.logprobs.text_offset
        assert [logprob for _, logprob in found] == pytest.approx(one.logprobs.token_logprobs)


def test_stop_and_seed_reach_the_policy(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 30, "seed": -7}
    whole = client.completions.create(**asked).choices[0]  # type: ignore[call-overload]
    assert client.completions.create(**asked).choices[0] == whole  # type: ignore[call-overload]
    stop = next(one for one in whole.text[4:] if one != "\ufffd")
    cut = client.completions.create(**asked, stop=["never", stop]).choices[0]  # type: ignore[call-overload]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


def test_an_answer_without_a_limit_fills_the_context(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "x" * 470}]
    answer = client.chat.completions.create(model="tiny", messages=long, seed=1)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512 or answer.choices[0].finish_reason == "stop"


def test_the_assistants_message_goes_on(client: openai.OpenAI) -> None:
    messages = [*HI, {"role": "assistant", "content": "Well,"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    begun = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, extra_body=extra)  # type: ignore[arg-type]
    plain = client.chat.completions.create(model="tiny", messages=HI, max_tokens=1)  # type: ignore[arg-type]
    assert begun.usage is not None
    assert plain.usage is not None
    assert begun.usage.prompt_tokens == plain.usage.prompt_tokens + len("Well,")


def test_many_clients_at_once_get_their_own_answers(client: openai.OpenAI) -> None:
    def ask(text: str) -> str:
        answer = client.completions.create(model="tiny", prompt=text, max_tokens=1, echo=True, logprobs=0)
        assert answer.choices[0].logprobs is not None
        logprobs = answer.choices[0].logprobs.token_logprobs or []
        assert all(one is None or math.isfinite(one) for one in logprobs)
        return answer.choices[0].text[:-1]

    texts = [f"text {number}" for number in range(16)]
    with ThreadPoolExecutor(8) as threads:
        assert all(found.startswith(text[:-1]) for text, found in zip(texts, threads.map(ask, texts), strict=True))
