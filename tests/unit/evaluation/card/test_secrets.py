"""A card, its twin and its spec hold no folder, host, address or token, whatever field of a spec held one."""

import json
from collections.abc import Iterator
from pathlib import Path

from charter.evaluation.card.files import card_texts
from charter.evaluation.card.join import twin_of
from charter.runs.folder import read_run_folder
from charter.spec.load import spec_to_json
from charter.v1 import judge_pb2, run_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.support.report_fixture import made_up_spec, write_run_folder

SECRET = "/home/somebody/secret-place/"
HOST = "secret-host:1234"
# No path and no address: what they hold is a name that people give, which the card may say.
NAMES = ("name", "dimensions", "by_dimension", "run_id", "dimension", "method", "engine", "precision", "eos_token")


def fill(message: Message) -> None:
    """Put something secret into every text of a message, deep."""
    for field in message.DESCRIPTOR.fields:
        if field.name in NAMES or field.name in ("accept", "on_no_gain", "stages", "kind"):
            continue
        is_host = field.name == "service" or "control" in field.name
        value = HOST if is_host else f"{SECRET}{field.name}.jsonl"
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                continue
            one = getattr(message, field.name)
            fill(one.add() if field.is_repeated else one)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                if isinstance(one, Message):
                    yield from texts(one)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            yield from value if field.is_repeated else [value]


def test_no_text_of_a_spec_brings_a_place_or_a_host_into_the_card(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    spec = run_pb2.RunSpec()
    fill(spec)
    spec.MergeFrom(run_pb2.RunSpec(name="made-up-run", ppo=made_up_spec().ppo))
    spec.judge.endpoint, spec.judge.method = "https://user:key@secret-host:1234/v1", judge_pb2.JUDGING_METHOD_CHOICE
    spec.reward.service_weight = spec.reward.preference_weight = 1.0
    spec.services.policy[:] = [HOST]
    assert sum(SECRET in text for text in texts(spec)) > 15
    (folder / "spec.json").write_text(spec_to_json(spec))
    info = json.loads((folder / "run.json").read_text())
    info["left_out"][f"supervised: {SECRET}source.jsonl"] = {"items": 3, "kinds": {"too long": 1}}
    (folder / "run.json").write_text(json.dumps(info))
    run = read_run_folder(folder)
    for name, text in card_texts(run, twin_of(run)).items():
        for secret in ("secret-place", "somebody", "secret-host", "user:key", str(tmp_path)):
            assert secret not in text, f"{secret} in {name}"


def test_addresses_that_are_left_out_are_named_as_to_be_filled_in(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    spec = json.loads((folder / "spec.json").read_text())
    spec["judge"] |= {"engine": "openai", "endpoint": "https://secret-host/v1"}
    spec["reward"] = {"preference_weight": 1, "service_weight": 1, "service": HOST}
    spec["dpo"] = {"stored": {"run_id": "own"}}
    (folder / "spec.json").write_text(json.dumps(spec))
    run = read_run_folder(folder)
    twin = twin_of(run)
    assert twin.fill_in == ("dpo.stored", "judge.endpoint", "reward.service")
    assert "It needs `dpo.stored`, `judge.endpoint`, `reward.service` first." in card_texts(run, twin)["README.md"]


def test_comments_of_a_constitution_stay_at_home(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    file = folder / "constitution.yaml"
    file.write_text("# by somebody@example.org\n" + file.read_text())
    run = read_run_folder(folder)
    text = card_texts(run, twin_of(run))["constitution.yaml"]
    assert "somebody" not in text
    assert "helpful-plain-words" in text
