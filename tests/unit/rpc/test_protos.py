"""The contracts: they lint, the committed code is theirs, and every request is bounded."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.v1 import (
    evaluation_pb2,
    judge_pb2,
    memory_pb2,
    policy_pb2,
    preference_pb2,
    run_pb2,
    study_pb2,
    trainer_pb2,
    types_pb2,
    validation_pb2,
    weights_pb2,
)
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
FILES = (
    evaluation_pb2,
    judge_pb2,
    memory_pb2,
    policy_pb2,
    preference_pb2,
    run_pb2,
    study_pb2,
    trainer_pb2,
    types_pb2,
    validation_pb2,
    weights_pb2,
)

# Fields that may be unbounded, and why.
UNBOUNDED = {
    "charter.v1.FeedbackSpec.by_dimension": "max_items bounds it; its keys are bounded by the message only",
    "charter.v1.RunEvent.metrics": "max_items bounds it; the length of its keys is bounded by the message only",
}


def test_buf_lint() -> None:
    result = subprocess.run([BIN / "buf", "lint"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def breaking(protos: Path) -> "subprocess.CompletedProcess[str]":
    """What `buf breaking` says of a folder with buf.yaml and protos/ against the released contract."""
    released = ROOT / "protos" / "released.binpb"
    return subprocess.run([BIN / "buf", "breaking", "--against", released], cwd=protos, capture_output=True, text=True)


def test_the_contract_is_compatible_with_the_version_before() -> None:
    """Services and workers of two versions meet during an upgrade. `make release-contract` takes the next baseline."""
    result = breaking(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_moved_field_is_seen_as_incompatible(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    file = tmp_path / "protos/charter/v1/types.proto"
    file.write_text(re.sub(r" = 1;", " = 999;", file.read_text(), count=1))
    result = breaking(tmp_path)
    assert result.returncode != 0
    assert "types.proto" in result.stdout, result.stdout + result.stderr


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "scripts" / "protos.sh", tmp_path], cwd=ROOT, check=True, env=environment)

    def generated(root: Path) -> dict[str, str]:
        files = [*(root / "charter" / "v1").glob("*_pb2*"), *(root / "charter" / "spec" / "schemas").iterdir()]
        return {path.name: path.read_text() for path in files}

    fresh, committed = generated(tmp_path), generated(ROOT / "services")
    assert committed.keys() == fresh.keys(), "run scripts/protos.sh: files are missing or left over"
    for name, text in fresh.items():
        changes = list(difflib.unified_diff(committed[name].splitlines(), text.splitlines(), lineterm="", n=0))
        assert not changes, f"run scripts/protos.sh: {name} differs\n" + "\n".join(changes[:20])


def test_every_proto_file_is_walked() -> None:
    """A new contract must be added to FILES, else its requests would not be checked below."""
    on_disk = {path.name for path in (ROOT / "protos" / "charter" / "v1").glob("*.proto")}
    assert {Path(module.DESCRIPTOR.name).name for module in FILES} == on_disk


def request_types() -> list[Descriptor]:
    """The request message of every RPC."""
    return [
        method.input_type
        for module in FILES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def fields_within(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Fields of a message and, once each, of all Charter messages in it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        nested = field.message_type
        if nested is not None and nested.full_name.startswith("charter.") and not nested.GetOptions().map_entry:
            yield from fields_within(nested, seen)


def request_fields() -> list[FieldDescriptor]:
    """Every field that can stand in a request, once."""
    seen: set[str] = set()
    return [field for message in request_types() for field in fields_within(message, seen)]


def missing_bounds(field: FieldDescriptor) -> list[str]:
    """What could grow without limit: a list's items, a text's length."""
    limit = field.GetOptions().Extensions[validation_pb2.constraint]
    missing = []
    if field.is_repeated and not limit.max_items:
        missing.append("max_items")
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        missing.append("bounded keys")
    is_text = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    # A pattern without open repetition bounds the length too.
    closed_pattern = limit.pattern and not re.search(r"[*+]|,\}", limit.pattern)
    if is_text and not limit.max_length and not closed_pattern:
        missing.append("max_length or a closed pattern")
    return missing


@pytest.mark.parametrize("field", request_fields(), ids=lambda field: field.full_name.removeprefix("charter.v1."))
def test_request_field_is_bounded(field: FieldDescriptor) -> None:
    if field.full_name in UNBOUNDED:
        assert missing_bounds(field), f"{field.full_name} is bounded now: remove it from UNBOUNDED"
        return
    assert not missing_bounds(field), f"{field.full_name} needs {' and '.join(missing_bounds(field))} in its constraint"


def test_constraints_fit_their_fields() -> None:
    """A bound on a field that it cannot apply to would silently check nothing."""
    texts = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    for field in request_fields():
        limit = field.GetOptions().Extensions[validation_pb2.constraint]
        wrong = []
        if (limit.min_items or limit.max_items) and not field.is_repeated:
            wrong.append("items of a field that is no list")
        if limit.max_length and field.type not in texts:
            wrong.append("length of a field that is no text")
        if limit.pattern and field.type != FieldDescriptor.TYPE_STRING:
            wrong.append("pattern of a field that is no string")
        numeric = field.cpp_type not in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
        if (limit.HasField("minimum") or limit.HasField("maximum")) and not numeric:
            wrong.append("bounds of a field that is no number")
        if limit.exclusive_minimum and not limit.HasField("minimum"):
            wrong.append("exclusive_minimum without minimum")
        assert not wrong, f"{field.full_name}: {', '.join(wrong)}"


def test_service_names_match_the_design() -> None:
    names = {service.full_name for module in FILES for service in module.DESCRIPTOR.services_by_name.values()}
    assert names == {
        "charter.v1.PolicyService",
        "charter.v1.JudgeService",
        "charter.v1.PreferenceService",
        "charter.v1.TrainerService",
        "charter.v1.RunReportService",
        "charter.v1.WeightService",
        "charter.v1.MemoryService",
    }


def test_the_bound_check_can_fail() -> None:
    """The walk above, on a message that has an unbounded string and list."""
    text, many = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="loose.proto", package="loose", syntax="proto3")
    file.message_type.add(name="Loose").field.add(name="words", number=1, type=text, label=many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    (field,) = pool.FindMessageTypeByName("loose.Loose").fields
    assert missing_bounds(field) == ["max_items", "max_length or a closed pattern"]
