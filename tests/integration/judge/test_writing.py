"""Critiques and revisions over a real channel: what a text depends on, and how a base model is asked for one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.inference import base_model
from charter.inference.base_model import as_chat_model
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.messages import proto_messages
from charter.spec.chat_form import ChatForm
from charter.v1 import judge_pb2, judge_pb2_grpc
from transformers import AutoTokenizer

from tests.integration.judge.test_service import CONSTITUTION
from tests.support.harness import running


@pytest.fixture(scope="module")
def stub(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[judge_pb2_grpc.JudgeServiceStub]:
    file = tmp_path_factory.mktemp("judge") / "constitution.yaml"
    file.write_text(CONSTITUTION)
    with running(build(JudgeConfig(str(tiny_model), file))) as addresses, connect(addresses.main) as channel:
        yield judge_pb2_grpc.JudgeServiceStub(channel)


def written(stub: judge_pb2_grpc.JudgeServiceStub, names: Sequence[str], seed: int = 7) -> dict[str, tuple[str, str]]:
    """Critique and revision of the same answer to each of some items."""
    prompt = proto_messages([ChatMessage("user", "Hi")])
    items = [judge_pb2.AnswerItem(id=name, prompt=prompt, answer="Go away.") for name in names]
    options = judge_pb2.JudgingOptions(seed=seed, principle_id="kind")
    limits = judge_pb2.SamplingLimits(max_new_tokens=8)
    critiques = stub.Critique(judge_pb2.CritiqueRequest(items=items, options=options, limits=limits), timeout=QUICK)
    revisions = stub.Revise(judge_pb2.ReviseRequest(items=items, options=options, limits=limits), timeout=QUICK)
    of_revisions = {one.item_id: one.revision for one in revisions}
    return {one.item_id: (one.critique, of_revisions[one.item_id]) for one in critiques}


def test_a_text_depends_on_the_seed_and_its_item_alone(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    """A round that is resumed asks for fewer items."""
    together = written(stub, ["a", "b", "c"])
    assert len(set(together.values())) == 3
    assert written(stub, ["c"]) == {"c": together["c"]}
    assert written(stub, ["b", "a"]) == {name: together[name] for name in ("a", "b")}
    assert written(stub, ["a"], seed=8) != {"a": together["a"]}


def test_a_base_model_criticises_by_going_on_with_plain_text(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "HF_HOME", str(tmp_path / "cache"))
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    room = build(JudgeConfig(as_chat_model(str(base), ChatForm("chatml", "")), tmp_path / "constitution.yaml"))
    with running(room) as addresses, connect(addresses.main) as channel:
        request = judge_pb2.CritiqueRequest(
            items=[judge_pb2.AnswerItem(id="x", prompt=proto_messages([ChatMessage("user", "Hi")]), answer="Go away.")],
            options=judge_pb2.JudgingOptions(seed=7, principle_id="kind"),
            limits=judge_pb2.SamplingLimits(max_new_tokens=8),
        )
        (found,) = judge_pb2_grpc.JudgeServiceStub(channel).Critique(request, timeout=QUICK)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "Human: Hi\n\nAssistant: Go away.\n\nCritiqueRequest: Unkind?\n\nCritique:"
    assert found.usage.prompt_tokens == len(tokenizer.encode(text))
