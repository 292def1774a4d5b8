"""What the OpenAI client is told when something cannot be served, and what becomes of a request whose client leaves."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from charter.gateway import metrics as gateway_metrics
from charter.judge.server import JudgeConfig
from charter.judge.server import build as build_judge
from charter.policy import metrics
from charter.policy.server import PolicyConfig, build

from tests.support.endpoint import Answer, endpoint
from tests.support.gateway import gateway
from tests.support.harness import running

GENERAL = Path(__file__).resolve().parents[3] / "examples" / "constitutions" / "general.yaml"
HI = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"model": "fake", "messages": HI}
TEXT: dict[str, Any] = {"model": "fake", "prompt": "Hi"}
JSON = {"type": "json_object"}
# Nothing listens there.
NOWHERE = "127.0.0.1:1"


@contextmanager
def fake_policy(folder: Path, max_requests: int = 256, **settings: Any) -> Iterator[str]:
    config = PolicyConfig("fake", folder, engine="fake", engine_settings=settings, max_requests=max_requests)
    with running(build(config)) as found:
        yield found.main


@contextmanager
def connected(*addresses: str, key: str = "any", **settings: Any) -> Iterator[openai.OpenAI]:
    with (
        gateway(*addresses, **settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with fake_policy(tmp_path_factory.mktemp("staging"), max_context_tokens=200) as at, connected(at) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        (
            "chat/completions",
            CHAT | {"response_format": {"type": "json_object"}},
            "response_format",
            "unsupported_parameter",
        ),
        ("chat/completions", CHAT | {"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ("chat/completions", CHAT | {"logit_bias": {"50": 1}}, "logit_bias", "unsupported_parameter"),
        ("chat/completions", CHAT | {"temprature": 1}, "temprature", "unknown_parameter"),
        ("chat/completions", CHAT | {"temperature": -1}, "temperature", "invalid_value"),
        ("chat/completions", CHAT | {"top_p": 0}, "top_p", "invalid_value"),
        ("chat/completions", CHAT | {"n": 0}, "n", "invalid_value"),
        ("chat/completions", CHAT | {"max_tokens": 0}, "max_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"max_completion_tokens": 10**6}, "max_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"max_tokens": 2**40}, "max_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ("chat/completions", CHAT | {"stop": ["x"] * 17}, "stop", "invalid_value"),
        ("chat/completions", CHAT | {"messages": []}, "messages", "invalid_value"),
        ("chat/completions", CHAT | {"messages": [{"role": "tool", "content": "1"}]}, "messages", "invalid_value"),
        (
            "chat/completions",
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "invalid_value",
        ),
        ("chat/completions", CHAT | {"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ("chat/completions", CHAT | {"max_tokens": 300}, "messages", "context_length_exceeded"),
        ("chat/completions", CHAT | {"max_tokens": 300, "stream": True}, "messages", "context_length_exceeded"),
        ("completions", TEXT | {"prompt": "x" * 200}, "prompt", "context_length_exceeded"),
        ("completions", TEXT | {"prompt": "x" * 201, "echo": True}, "prompt", "context_length_exceeded"),
        ("completions", TEXT | {"prompt": []}, "prompt", "invalid_value"),
        ("completions", TEXT | {"prompt": ""}, "prompt", "invalid_value"),
        ("completions", TEXT | {"prompt": [[]]}, "prompt", "invalid_value"),
        ("completions", TEXT | {"prompt": [-1]}, "prompt", "invalid_value"),
        ("completions", TEXT | {"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ("completions", TEXT | {"max_tokens": 2**32, "echo": True}, "max_tokens", "invalid_value"),
        ("completions", TEXT | {"logprobs": 21}, "logprobs", "invalid_value"),
        ("completions", TEXT | {"best_of": 2}, "best_of", "unsupported_parameter"),
        ("completions", TEXT | {"suffix": "!"}, "suffix", "unsupported_parameter"),
        ("completions", {"prompt": "Hi"}, "model", "invalid_value"),
    ],
)
def test_what_cannot_be_served_is_named(
    client: openai.OpenAI, path: str, body: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(f"/{path}", body=body, cast_to=object)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert param in caught.value.message


def test_what_asks_for_nothing_is_no_error(client: openai.OpenAI) -> None:
    nothing = {
        "tools": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "user": "me",
    }
    parts = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = client.chat.completions.create(model="fake", messages=parts, stop="", extra_body=nothing)  # type: ignore[arg-type]
    assert answer.choices[0].message.content


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5' here, but fake") as caught:
        client.chat.completions.create(**CHAT | {"model": "gpt-5"})
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("GET", "nothing", "", 404), ("GET", "completions", "", 405), ("POST", "completions", "{", 400)],
)
def test_what_is_no_request_of_the_api_is_said_in_its_form(
    client: openai.OpenAI, method: str, path: str, body: str, status: int
) -> None:
    answer = httpx.request(method, f"{client.base_url}{path}", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_policy_that_is_away_can_be_asked_again() -> None:
    with connected(named={"fake": NOWHERE}) as client:
        root = str(client.base_url).removesuffix("v1/")
        assert (httpx.get(f"{root}healthz").status_code, httpx.get(f"{root}readyz").status_code) == (200, 503)
        with pytest.raises(openai.InternalServerError, match="the model's service is away") as caught:
            client.chat.completions.create(**CHAT)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "5"


def test_a_judge_that_is_away_hides_no_model_and_no_typing_error(tmp_path: Path) -> None:
    with fake_policy(tmp_path) as at, connected(at, named={"judge": NOWHERE}) as client:
        assert [one.id for one in client.models.list().data] == ["fake"]
        assert client.chat.completions.create(**CHAT).choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="no model 'fale' here, but fake"):
            client.chat.completions.create(**CHAT | {"model": "fale"})
        with pytest.raises(openai.InternalServerError, match="the model's service is away"):
            client.chat.completions.create(**CHAT | {"model": "judge"})


def test_a_judge_before_an_endpoint_lends_nobody_its_key() -> None:
    with endpoint(lambda _: Answer("A")) as served:
        config = JudgeConfig("test-model", GENERAL, "openai", "choice", engine_settings={"endpoint": served.url})
        with running(build_judge(config)) as judge, connected(named={"judge": judge.main}) as client:
            asked = len(served.requests)
            with pytest.raises(openai.NotFoundError, match="a judge with engine openai is to be asked at its endpoint"):
                client.chat.completions.create(**CHAT | {"model": "judge"})
            assert httpx.get(str(client.base_url).removesuffix("v1/") + "readyz").status_code == 503
        assert len(served.requests) == asked


def test_another_replica_is_asked_for_one_that_is_away(tmp_path: Path) -> None:
    with fake_policy(tmp_path) as at, connected(named={"fake": f"{NOWHERE},{at}"}) as client:
        root = str(client.base_url).removesuffix("v1/")
        assert httpx.get(f"{root}readyz").status_code == 200
        assert client.chat.completions.create(**CHAT).choices[0].message.content


def test_several_policies_have_the_names_they_were_given(tmp_path: Path) -> None:
    with fake_policy(tmp_path) as at, connected(at, named={"aligned": at}) as client:
        assert sorted(one.id for one in client.models.list().data) == ["aligned", "fake"]
        assert client.chat.completions.create(**CHAT | {"model": "aligned"}).model == "aligned"


def test_a_key_is_asked_for_where_one_was_given(tmp_path: Path) -> None:
    with fake_policy(tmp_path) as at, gateway(at, api_key="secret") as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert client.models.list().data
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_key_is_bytes_and_its_scheme_has_no_case(tmp_path: Path) -> None:
    with fake_policy(tmp_path) as at, gateway(at, api_key="schlüssel") as url:
        for scheme in ("Bearer", "bearer", "BEARER"):
            sent = httpx.get(f"{url}/v1/models", headers={b"Authorization": f"{scheme} schlüssel".encode()})
            assert sent.status_code == 200


def requests_of(status: str) -> float:
    found = gateway_metrics.REQUESTS.labels("/v1/chat/completions", status)._value.get()
    assert isinstance(found, float)
    return found


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_fault_of_the_gateway() -> None:
    left, failed = requests_of("499"), requests_of("500")
    with gateway(named={"fake": NOWHERE}) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: it\r\nContent-Length: 500\r\n\r\n{")
        deadline = time.monotonic() + 30
        while (requests_of("499"), requests_of("500")) == (left, failed):
            assert time.monotonic() < deadline, "the request never ended"
            time.sleep(0.01)
    assert (requests_of("499"), requests_of("500")) == (left + 1, failed)


def until_idle() -> None:
    """Returns when the policy has no request under way."""
    deadline = time.monotonic() + 30
    while metrics.REQUESTS._value.get():
        assert time.monotonic() < deadline, "the policy still works for a client that has left"
        time.sleep(0.01)


def test_a_full_policy_says_when_to_ask_again_and_a_client_that_leaves_makes_room(tmp_path: Path) -> None:
    with fake_policy(tmp_path, max_requests=1, seconds_per_token=0.05) as at, connected(at) as client:
        with client.chat.completions.create(**CHAT, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="the model's service is full") as caught:
                client.chat.completions.create(**CHAT)
            assert caught.value.response.headers["Retry-After"] == "5"
            assert caught.value.code == "rate_limit_exceeded"
        until_idle()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(**CHAT)
        until_idle()
        client.completions.create(**TEXT, max_tokens=1)


def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    with ExitStack() as policy:
        at = policy.enter_context(fake_policy(tmp_path, seconds_per_token=0.2))
        with connected(at) as client:
            stream = client.chat.completions.create(**CHAT, stream=True)
            next(stream)
            policy.close()
            with pytest.raises(openai.APIError, match="the model's service is away"):
                list(stream)


def test_tokens_are_those_that_an_endpoint_behind_the_policy_counts(tmp_path: Path) -> None:
    with endpoint(lambda _: Answer("Hello")) as served:
        config = PolicyConfig("test-model", tmp_path, engine="openai", engine_settings={"endpoint": served.url})
        with running(build(config)) as policy, connected(policy.main) as client:
            before = metrics.GENERATED_TOKENS._value.get()
            answer = client.chat.completions.create(**CHAT | {"model": "test-model", "max_tokens": 5})
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 1)
    assert metrics.GENERATED_TOKENS._value.get() == before + 1


def test_a_fault_of_the_policy_is_one_of_the_server(tmp_path: Path) -> None:
    with fake_policy(tmp_path, fail_every=1) as at, connected(at) as client:
        with pytest.raises(openai.InternalServerError, match="InjectedFaultError") as caught:
            client.completions.create(**TEXT)
        assert caught.value.status_code == 500
