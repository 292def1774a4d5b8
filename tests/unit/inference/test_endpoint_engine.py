"""The OpenAI engine against a real HTTP server that keeps to the API's wire format."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.inference.endpoint.engine import OpenAIEngine
from charter.inference.engine import ChoiceLogprobs, Finish, Prompt, RefusedRequestError, Sampling
from charter.weights.receiver import model_info

ASKED = Prompt((ChatMessage("user", "Which is better?"),), assistant_prefix="The better response is (")


def whole(turns: list[dict[str, str]]) -> str:
    return " ".join(f"<{turn['role']}> {turn['content']}" for turn in turns)


class Endpoint(ThreadingHTTPServer):
    """Answers every completion with B at 0.6, A at 0.2 + 0.1; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.knows_continuation = True
        self.gives_logprobs = True
        self.status = 200
        # Of requests that ask for log-probs.
        self.logprobs_status = 200
        # What its template makes of a conversation, or none where it refuses it; a token for each word.
        self.renders: Callable[[list[dict[str, str]]], str | None] = whole
        # Changes the body of an answer, or takes its place.
        self.odd: Callable[[dict[str, Any]], Any] = lambda body: body

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def usage(prompt_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1}


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)
        status = self.server.status
        if "continue_final_message" in asked and not self.server.knows_continuation:
            status = 400
        if asked.get("logprobs") and self.server.logprobs_status != 200:
            status = self.server.logprobs_status
        rendered = self.server.renders(asked["messages"])
        if rendered is None:
            status = 400
        top = [("B", 0.6), ("A", 0.2), (" A", 0.1), ("The", 0.05)]
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top]
        logprobs = {"content": [listed[0] | {"top_logprobs": listed}]} if self.server.gives_logprobs else None
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length" if asked["max_tokens"] == 1 else "stop",
                    "message": {"role": "assistant", "content": "B)"},
                    "logprobs": logprobs if asked.get("logprobs") else None,
                }
            ],
            "usage": usage(len((rendered or "").split())),
        }
        content = self.server.odd(body) if status == 200 else {"error": {"message": "no such parameter"}}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("retry-after-ms", "1")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def started(endpoint: Endpoint) -> OpenAIEngine:
    engine = OpenAIEngine("judge", endpoint=endpoint.url)
    await engine.start()
    endpoint.asked.clear()
    return engine


async def test_choice_logprobs_add_up_the_ways_to_write_a_choice(endpoint: Endpoint) -> None:
    engine = await started(endpoint)
    (result,) = await engine.choice_logprobs([ASKED], ["A", "B", "C"])
    assert isinstance(result, ChoiceLogprobs)
    assert [math.exp(value) for value in result.logprobs] == pytest.approx([0.3, 0.6, 0.0])
    # <user> Which is better? <assistant> The better response is (
    assert result.prompt_tokens == 10
    (asked,) = endpoint.asked
    assert (asked["continue_final_message"], asked["messages"][-1]["role"]) == (True, "assistant")
    assert (asked["top_logprobs"], asked["max_tokens"]) == (20, 1)
    await engine.stop()


async def test_without_continuation_the_prefix_is_asked_for(endpoint: Endpoint) -> None:
    endpoint.knows_continuation = False
    engine = await started(endpoint)
    await engine.choice_logprobs([ASKED], ["A"])
    (asked,) = endpoint.asked
    assert "continue_final_message" not in asked
    assert [turn["role"] for turn in asked["messages"]] == ["user"]
    assert "begins with: The better response is (" in asked["messages"][0]["content"]
    await engine.stop()


async def test_text_is_sampled(endpoint: Endpoint) -> None:
    engine = await started(endpoint)
    prompt = Prompt(ASKED.messages)
    samples = [s async for s in engine.generate([prompt, prompt], Sampling(5, temperature=0.5, seed=3), 2)]
    assert {(s.prompt_index, s.sample_index) for s in samples} == {(p, s) for p in range(2) for s in range(2)}
    assert {(s.text, s.finish) for s in samples} == {("B)", Finish.EOS)}
    assert model_info(engine.info()).not_compared == "an endpoint has the only copy of its model"
    seeds = {asked["seed"] for asked in endpoint.asked}
    assert len(seeds) == 4
    # A prompt's own seed fixes its answer wherever the prompt stands.
    endpoint.asked.clear()
    for prompts in ([prompt, replace(prompt, seed=9)], [replace(prompt, seed=9)]):
        assert [s async for s in engine.generate(prompts, Sampling(5, seed=3))]
    first, *own = sorted((asked["seed"] for asked in endpoint.asked), key=lambda seed: seed not in seeds)
    assert first in seeds
    assert own == [own[0]] * 2
    with pytest.raises(RefusedRequestError, match="goes on with no plain text"):
        assert [s async for s in engine.generate([Prompt((), text="Once")], Sampling(5))]
    with pytest.raises(RefusedRequestError, match="and not what a user says"):
        assert [s async for s in engine.generate([Prompt((), as_user=True)], Sampling(5))]
    await engine.stop()


async def test_what_the_api_cannot_do_is_refused(endpoint: Endpoint) -> None:
    engine = await started(endpoint)
    with pytest.raises(RefusedRequestError, match="no log-likelihood"):
        await engine.answer_loglikelihoods([(ASKED, "Yes.")])
    endpoint.gives_logprobs = False
    with pytest.raises(RefusedRequestError, match="gave no log-probs"):
        await engine.choice_logprobs([ASKED], ["A"])
    await engine.stop()


def with_default_system(turns: list[dict[str, str]]) -> str:
    return whole(turns if turns[0]["role"] == "system" else [{"role": "system", "content": "You help."}, *turns])


def without_system(turns: list[dict[str, str]]) -> str:
    return whole([turn for turn in turns if turn["role"] != "system"])


def default_system_only(turns: list[dict[str, str]]) -> str:
    return with_default_system([turn for turn in turns if turn["role"] != "system"])


def refusing_system(turns: list[dict[str, str]]) -> str | None:
    return None if any(turn["role"] == "system" for turn in turns) else whole(turns)


def last_alone(turns: list[dict[str, str]]) -> str:
    return whole(turns[-1:])


CONVERSATION = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hi"), ChatMessage("assistant", "Yes?"))
LATER = (ChatMessage("system", "And kind."), ChatMessage("user", "Go on."))


@pytest.mark.parametrize(
    ("renders", "reads_system"),
    [
        (whole, True),
        (with_default_system, True),
        (without_system, False),
        (default_system_only, False),
        (refusing_system, False),
    ],
)
@pytest.mark.parametrize("logprobs_status", [200, 400])
async def test_a_system_text_reaches_the_model(
    endpoint: Endpoint,
    renders: Callable[[list[dict[str, str]]], str | None],
    reads_system: bool,
    logprobs_status: int,
) -> None:
    endpoint.renders, endpoint.logprobs_status = renders, logprobs_status
    engine = await started(endpoint)
    prompt = Prompt((*CONVERSATION, *LATER))
    await engine.choice_logprobs([prompt], ["A", "B"])
    [_ async for _ in engine.generate([prompt], Sampling(5))]
    for asked in endpoint.asked:
        read = renders(asked["messages"]) or ""
        assert all(message.content in read for message in prompt.messages)
        begin = [("system", "Be brief."), ("user", "Hi")] if reads_system else [("user", "Be brief.\n\nHi")]
        assert [(turn["role"], turn["content"]) for turn in asked["messages"][:-2]] == begin
        assert asked["messages"][-1]["content"].startswith("And kind.\n\nGo on.")
    await engine.stop()


@pytest.mark.parametrize("counted", [None, usage(17)])
async def test_where_nothing_is_counted_a_system_text_is_what_the_user_says(endpoint: Endpoint, counted: Any) -> None:
    endpoint.odd = lambda body: body | {"usage": counted}
    engine = await started(endpoint)
    [_ async for _ in engine.generate([Prompt((*CONVERSATION, *LATER))], Sampling(5))]
    assert [turn["role"] for turn in endpoint.asked[0]["messages"]] == ["user", "assistant", "user"]
    await engine.stop()


async def test_an_endpoint_that_leaves_out_earlier_turns_is_refused_where_there_are_some(endpoint: Endpoint) -> None:
    endpoint.renders = last_alone
    engine = await started(endpoint)
    await engine.choice_logprobs([Prompt((*CONVERSATION[:2],), ASKED.assistant_prefix)], ["A", "B"])
    assert whole(endpoint.asked[-1]["messages"]).startswith("<user> Be brief.\n\nHi")
    with pytest.raises(RefusedRequestError, match="leaves out the earlier turns of a conversation"):
        await engine.choice_logprobs([Prompt((*CONVERSATION, *LATER))], ["A", "B"])
    await engine.stop()


def of_choice(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda body: body | {"choices": [change(body["choices"][0])]}


def without_alternatives(choice: dict[str, Any]) -> dict[str, Any]:
    return choice | {"logprobs": {"content": [choice["logprobs"]["content"][0] | {"top_logprobs": None}]}}


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "total_tokens": None}, "many"])
async def test_usage_that_cannot_be_read_costs_nothing_else(endpoint: Endpoint, usage: Any) -> None:
    engine = await started(endpoint)
    endpoint.odd = lambda body: body | {"usage": usage}
    (result,) = await engine.choice_logprobs([ASKED], ["A", "B"])
    assert isinstance(result, ChoiceLogprobs)
    assert math.exp(result.logprobs[1]) == pytest.approx(0.6)
    assert result.prompt_tokens == 0
    await engine.stop()


@pytest.mark.parametrize(
    "odd",
    [
        lambda _: b"",
        lambda _: b"<html>",
        lambda _: None,
        lambda _: {},
        lambda body: body | {"choices": None},
        lambda body: body | {"choices": []},
        lambda body: body | {"choices": [None]},
        of_choice(lambda choice: choice | {"message": None}),
    ],
)
async def test_an_odd_reply_is_one_failure_that_may_pass(
    endpoint: Endpoint, odd: Callable[[dict[str, Any]], Any]
) -> None:
    engine = await started(endpoint)
    endpoint.odd = odd
    with pytest.raises(ConnectionError, match="did not answer with a chat completion"):
        await engine.choice_logprobs([ASKED], ["A"])
    with pytest.raises(ConnectionError, match="did not answer with a chat completion"):
        [sample async for sample in engine.generate([Prompt(ASKED.messages)], Sampling(5))]
    await engine.stop()


@pytest.mark.parametrize(
    "odd",
    [
        of_choice(without_alternatives),
        of_choice(lambda choice: choice | {"logprobs": {"content": None}}),
        of_choice(lambda choice: choice | {"logprobs": [1]}),
    ],
)
async def test_odd_logprobs_are_one_failure(endpoint: Endpoint, odd: Callable[[dict[str, Any]], Any]) -> None:
    engine = await started(endpoint)
    endpoint.odd = odd
    with pytest.raises(RefusedRequestError, match="gave no log-probs this time"):
        await engine.choice_logprobs([ASKED], ["A"])
    await engine.stop()


@pytest.mark.parametrize("status", [400, 403, 500])
async def test_where_logprobs_are_an_error_choices_are_written(endpoint: Endpoint, status: int) -> None:
    endpoint.logprobs_status = status
    endpoint.odd = of_choice(lambda choice: choice | {"message": {"role": "assistant", "content": '{"answer": "B"}'}})
    engine = await started(endpoint)
    (result,) = await engine.choice_logprobs([ASKED], ["A", "B"])
    assert isinstance(result, ChoiceLogprobs)
    assert result == ChoiceLogprobs((-math.inf, 0.0), result.prompt_tokens, 1, written=True)
    await engine.stop()


@pytest.mark.parametrize("status", [401, 404])
async def test_an_endpoint_that_does_not_serve_is_a_connection_error(endpoint: Endpoint, status: int) -> None:
    endpoint.status = status
    engine = OpenAIEngine("judge", endpoint=endpoint.url)
    with pytest.raises(ConnectionError, match="does not serve judge"):
        await engine.start()
    await engine.stop()


async def test_an_unreachable_endpoint_is_a_connection_error() -> None:
    engine = OpenAIEngine("judge", endpoint="http://127.0.0.1:1/v1")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:1/v1 .*Is it running"):
        await engine.start()
    await engine.stop()
