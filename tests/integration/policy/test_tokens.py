"""Prompts as they stand, stop texts, and the log-probs of every token, over a real channel and against the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
import torch
from charter.policy.server import PolicyConfig, build
from charter.rpc.channel import QUICK, connect
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.support.harness import running

HI = [types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")]


@pytest.fixture(scope="module")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[policy_pb2_grpc.PolicyServiceStub]:
    config = PolicyConfig(str(tiny_model), tmp_path_factory.mktemp("staging"))
    with running(build(config)) as found, connect(found.main) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded.eval()


def table(model: torch.nn.Module, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of what comes behind each token, [tokens, vocabulary]."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return (logits / temperature).log_softmax(-1)


def sample(
    policy: policy_pb2_grpc.PolicyServiceStub,
    prompt: policy_pb2.GenerationPrompt,
    sampling: policy_pb2.SamplingParameters,
) -> policy_pb2.Sample:
    request = policy_pb2.GenerateRequest(prompts=[prompt], sampling=sampling)
    (response,) = policy.Generate(request, timeout=QUICK)
    found: policy_pb2.Sample = response.sample
    return found


def test_a_text_and_its_tokens_are_read_as_they_stand(
    policy: policy_pb2_grpc.PolicyServiceStub, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "Once <|im_end|> upon"
    ids = tokenizer.encode(text)
    greedy = policy_pb2.SamplingParameters(temperature=0, max_new_tokens=4)
    by_text = sample(policy, policy_pb2.GenerationPrompt(text=text, special_tokens=True), greedy)
    by_ids = sample(policy, policy_pb2.GenerationPrompt(token_ids=ids), greedy)
    assert list(by_text.prompt_token_ids) == list(by_ids.prompt_token_ids) == ids
    assert by_text.token_ids == by_ids.token_ids


def test_an_answer_goes_on_behind_its_prefix(
    policy: policy_pb2_grpc.PolicyServiceStub, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = policy_pb2.GenerationPrompt(messages=HI, assistant_prefix="Well,")
    read = sample(policy, prompt, policy_pb2.SamplingParameters(max_new_tokens=1)).prompt_token_ids
    assert tokenizer.decode(read) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell,"


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_every_token_of_an_answer_has_its_likeliest(
    policy: policy_pb2_grpc.PolicyServiceStub, model: torch.nn.Module, temperature: float
) -> None:
    sampling = policy_pb2.SamplingParameters(temperature=temperature, max_new_tokens=6, seed=2, top_logprobs=3)
    found = sample(policy, policy_pb2.GenerationPrompt(messages=HI), sampling)
    ids = [*found.prompt_token_ids, *found.token_ids]
    rows = table(model, ids, temperature or 1.0)[len(found.prompt_token_ids) - 1 : -1]
    assert [place.token.token_id for place in found.places] == list(found.token_ids)
    for place, row in zip(found.places, rows, strict=True):
        assert place.token.logprob == pytest.approx(float(row[place.token.token_id]), abs=2e-5)
        values, tokens = row.topk(3)
        assert [one.token_id for one in place.top] == tokens.tolist()
        assert [one.logprob for one in place.top] == pytest.approx(values.tolist(), abs=2e-5)


def test_scores_are_the_models_own(
    policy: policy_pb2_grpc.PolicyServiceStub, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["The sky is blue.", "The sky is green", "é"]
    request = policy_pb2.PolicyServiceScoreRequest(
        prompts=[policy_pb2.GenerationPrompt(text=text) for text in texts], top_logprobs=2
    )
    found = {one.prompt_index: one for one in policy.Score(request, timeout=QUICK)}
    assert sorted(found) == [0, 1, 2]
    for index, text in enumerate(texts):
        one, ids = found[index], tokenizer.encode(text)
        assert one.text == text
        rows = table(model, ids)
        assert [place.token.token_id for place in one.places] == ids
        assert not one.places[0].token.HasField("logprob")
        assert list(one.places[0].top) == []
        own = [place.token.logprob for place in one.places[1:]]
        assert own == pytest.approx([float(rows[i, token]) for i, token in enumerate(ids[1:])], abs=2e-5)
        assert [top.token_id for place in one.places[1:] for top in place.top] == rows[:-1].topk(2)[
            1
        ].flatten().tolist()
        assert [top.token_id for top in one.next] == rows[-1].topk(2)[1].tolist()
        assert one.next_ends == (one.next[0].token_id == tokenizer.eos_token_id)
    # A token that is a part of a character.
    assert [place.token.text for place in found[2].places] == ["\ufffd", "\ufffd"]
    assert "".join(place.token.text for place in found[0].places) == texts[0]


def test_a_prompt_is_scored_without_alternatives(policy: policy_pb2_grpc.PolicyServiceStub) -> None:
    request = policy_pb2.PolicyServiceScoreRequest(prompts=[policy_pb2.GenerationPrompt(text="ab")])
    (one,) = policy.Score(request, timeout=QUICK)
    assert [len(place.top) for place in one.places] == [0, 0]
    assert len(one.next) == 1


def test_an_answer_ends_before_a_stop_text(policy: policy_pb2_grpc.PolicyServiceStub) -> None:
    prompt = policy_pb2.GenerationPrompt(messages=HI)
    whole = sample(policy, prompt, policy_pb2.SamplingParameters(max_new_tokens=40, seed=5))
    # Two characters that are written for the first time somewhere inside.
    place = next(i for i in range(3, len(whole.text) - 1) if "\ufffd" not in whole.text[i : i + 2])
    stop = whole.text[place : place + 2]
    sampling = policy_pb2.SamplingParameters(max_new_tokens=40, seed=5, stop=["never written", stop], top_logprobs=0)
    request = policy_pb2.GenerateRequest(prompts=[prompt], sampling=sampling, stream_text=True)
    *partial, last = policy.Generate(request, timeout=QUICK)
    found = last.sample
    assert found.finish_reason == policy_pb2.FINISH_REASON_STOP
    assert found.text == whole.text[: whole.text.index(stop)]
    assert list(found.token_ids) == list(whole.token_ids[: len(found.token_ids)])
    assert len(found.places) == len(found.token_ids) < len(whole.token_ids)
    # Nothing was sent that the stop text takes back, and every token but the last came once.
    assert all(found.text.startswith(one.text_so_far.rstrip("\ufffd")) for one in partial)
    assert [new for one in partial for new in one.new_places] == list(found.places[:-1])


def test_an_answer_may_fill_the_context(policy: policy_pb2_grpc.PolicyServiceStub) -> None:
    prompt = policy_pb2.GenerationPrompt(token_ids=[70] * 500)
    # What ends an answer in this model is unlikely in twelve tokens.
    found = sample(policy, prompt, policy_pb2.SamplingParameters(seed=1))
    assert len(found.token_ids) == 12
    assert found.finish_reason == policy_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (policy_pb2.GenerationPrompt(), r"prompts\[0\].messages: needs at least 1 items"),
        (policy_pb2.GenerationPrompt(text="a", token_ids=[70]), r"prompts\[0\]: takes one of text, token_ids"),
        (policy_pb2.GenerationPrompt(text="a", assistant_prefix="b"), "beside messages only"),
        (policy_pb2.GenerationPrompt(token_ids=[70, 99999]), "token 99999 is none of the 259"),
        (policy_pb2.GenerationPrompt(token_ids=[70] * 513), r"prompts\[0\]: needs 513 tokens"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    policy: policy_pb2_grpc.PolicyServiceStub, prompt: policy_pb2.GenerationPrompt, words: str
) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        list(policy.Score(policy_pb2.PolicyServiceScoreRequest(prompts=[prompt]), timeout=QUICK))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
