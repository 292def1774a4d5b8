"""A run whose policy is a base model: the spec gives it a chat template, and the aligned model carries it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.inference import base_model
from charter.inference.base_model import as_chat_model
from charter.inference.chat_template import ChatTokenizer
from charter.spec.chat_form import ChatForm
from charter.v1 import run_pb2
from charter.worker.__main__ import FAILED, REFUSED
from transformers import GenerationConfig

from tests.support.tiny import CHAT_TEMPLATE, make_tiny_model
from tests.support.worker_services import Stage, tiny_services


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("base") / "base")
    (folder / "chat_template.jinja").unlink()
    # Turns that end by a token which the model has not.
    form(folder).write_text(CHAT_TEMPLATE.replace("<|im_end|>", "<|stop|>"))
    return folder


def form(base: Path) -> Path:
    return base.with_name("stop.jinja")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("services")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "HF_HOME", str(folder / "cache"))
        with tiny_services(folder, Path(as_chat_model(str(base), ChatForm(str(form(base)), "<|stop|>")))) as stage:
            yield stage


def spec_of(stage: Stage, base: Path, **sections: dict[str, Any]) -> run_pb2.RunSpec:
    policy = {"model": str(base), "chat_template": str(form(base)), "eos_token": "<|stop|>"}
    policy |= sections.pop("policy", {})
    return stage.spec(policy=policy, judge={"model": str(base)}, **sections)


def test_the_aligned_model_chats_and_stops(stage: Stage, base: Path) -> None:
    assert stage.work("base", spec_of(stage, base, ppo={"steps": 1})) == 0
    folder = str(stage.run_folder("base") / "policy")
    aligned = ChatTokenizer.load(folder)
    assert aligned.render((ChatMessage("user", "Hi"),)).endswith("<|im_start|>assistant\n")
    assert [aligned.eos_id] == aligned.encode("<|stop|>")
    assert aligned.eos_id in GenerationConfig.from_pretrained(folder).eos_token_id
    assert str(base) in (stage.run_folder("base") / "spec.json").read_text()


def test_services_without_the_template_are_refused(stage: Stage, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert stage.work("other-form", spec_of(stage, base, policy={"eos_token": "<|im_end|>"})) == FAILED
    assert "serves another chat template, the spec says policy.chat_template" in caplog.messages[-1]


def test_lora_cannot_learn_tokens_that_the_model_has_never_seen(
    stage: Stage, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert stage.work("lora", spec_of(stage, base, ppo={"lora_rank": 2})) == REFUSED
    assert "adds tokens that policy.model has never seen: <|stop|>" in caplog.messages[-1]
