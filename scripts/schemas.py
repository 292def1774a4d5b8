"""Writes the JSON schemas of run spec, evaluation spec, constitution and model card; `scripts/protos.sh` calls this.

The argument is the folder that holds the package `charter`.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from charter.evaluation.card import twin
from charter.spec import constitution
from charter.spec.defaults import DEFAULTS
from charter.v1 import evaluation_pb2, judge_pb2, run_pb2, study_pb2, validation_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

ROOT = Path(__file__).resolve().parents[1]
DRAFT = "http://json-schema.org/draft-07/schema#"
Schema = dict[str, Any]


def main(out: Path) -> None:
    """Write the files."""
    comments = _comments()
    folder = out / "charter" / "spec" / "schemas"
    folder.mkdir(parents=True, exist_ok=True)
    schemas = {
        "run": spec_schema("Charter run spec", run_pb2.RunSpec.DESCRIPTOR, comments),
        "evaluation": spec_schema("Charter evaluation spec", evaluation_pb2.EvaluateSpec.DESCRIPTOR, comments),
        "study": spec_schema("Charter study spec", study_pb2.StudySpec.DESCRIPTOR, comments),
        "constitution": constitution_schema(comments),
        "card": twin.schema(),
    }
    for name, schema in schemas.items():
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.schema.json").write_text(text, encoding="utf-8")


def spec_schema(title: str, spec: Descriptor, comments: Mapping[str, str]) -> Schema:
    """Of a spec: its message and what is in it."""
    definitions: Schema = {}
    root = _message(spec, comments, definitions)
    return {"$schema": DRAFT, "title": title, **root, "definitions": definitions}


def constitution_schema(comments: Mapping[str, str]) -> Schema:
    """Of a constitution: its dataclasses, with the words of the messages that carry it."""
    definitions = {
        "Principle": _record(constitution.Principle, judge_pb2.Principle.DESCRIPTOR, comments),
        "Example": _record(constitution.Example, judge_pb2.ComparisonExample.DESCRIPTOR, comments),
        "RevisionExample": _record(constitution.RevisionExample, judge_pb2.RevisionExample.DESCRIPTOR, comments),
    }
    for name in ("examples", "revisions"):
        definitions["Principle"]["properties"][name] |= {"minItems": 1, "maxItems": constitution.MOST_EXAMPLES}
    root = _record(constitution.Constitution, judge_pb2.Constitution.DESCRIPTOR, comments, leave_out=("source_yaml",))
    root["required"].remove("description")
    root["properties"]["principles"]["minItems"] = 1
    return {"$schema": DRAFT, "title": "Charter constitution", **root, "definitions": definitions}


def _message(message: Descriptor, comments: Mapping[str, str], definitions: Schema) -> Schema:
    properties: Schema = {}
    required = []
    for field in message.fields:
        limit = field.GetOptions().Extensions[validation_pb2.constraint]
        found = _field(field, limit, comments, definitions)
        default = DEFAULTS.get(_section(message), {}).get(field.name)
        properties[field.name] = found
        # Beside a $ref nothing counts; what it leads to has its own words.
        if (words := comments.get(field.full_name)) and "$ref" not in found:
            properties[field.name] = {"description": words, **found}
        if default is not None:
            properties[field.name]["default"] = default
        # A list that is required is one whose items are.
        if (limit.required and not field.is_repeated) or limit.min_items:
            required.append(field.name)
    schema: Schema = {"description": comments.get(message.full_name, ""), "type": "object"}
    schema |= {"properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _section(message: Descriptor) -> str:
    """Name that the spec gives to a message of this kind; empty for others."""
    kinds = {field.name: field.message_type for field in run_pb2.RunSpec.DESCRIPTOR.fields}
    return next((name for name, kind in kinds.items() if kind is not None and kind.full_name == message.full_name), "")


def _field(
    field: FieldDescriptor, limit: validation_pb2.FieldConstraint, comments: Mapping[str, str], definitions: Schema
) -> Schema:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _one(value, limit, comments, definitions)}
    one = _one(field, limit, comments, definitions)
    if not field.is_repeated:
        return one
    bounds = {"minItems": limit.min_items, "maxItems": limit.max_items}
    return {"type": "array", "items": one, **{name: bound for name, bound in bounds.items() if bound}}


def _one(
    field: FieldDescriptor, limit: validation_pb2.FieldConstraint, comments: Mapping[str, str], definitions: Schema
) -> Schema:
    if field.message_type is None:
        return _scalar(field, limit, comments)
    if field.message_type.full_name == "google.protobuf.Struct":
        return {"type": "object"}
    return _reference(field.message_type, comments, definitions)


def _reference(message: Descriptor, comments: Mapping[str, str], definitions: Schema) -> Schema:
    if message.name not in definitions:
        # Before its fields, which may hold one of its own kind.
        definitions[message.name] = {}
        definitions[message.name] = _message(message, comments, definitions)
    return {"$ref": f"#/definitions/{message.name}"}


def _scalar(field: FieldDescriptor, limit: validation_pb2.FieldConstraint, comments: Mapping[str, str]) -> Schema:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return {"type": "boolean"}
        case FieldDescriptor.CPPTYPE_STRING:
            return _text(limit)
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return _enum(field.enum_type, comments)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            kind: Schema = {"type": "number"}
        case FieldDescriptor.CPPTYPE_UINT32:
            kind = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
        case _:
            kind = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
    if limit.HasField("minimum"):
        kind.pop("minimum", None)
        kind["exclusiveMinimum" if limit.exclusive_minimum else "minimum"] = _whole(limit.minimum)
    if limit.HasField("maximum"):
        kind["maximum"] = _whole(limit.maximum)
    return kind


def _whole(number: float) -> float | int:
    return int(number) if number.is_integer() else number


def _text(limit: validation_pb2.FieldConstraint) -> Schema:
    text: Schema = {"type": "string"}
    if re.fullmatch(r"[a-z0-9_|]+", limit.pattern):
        # Alternatives: a list of them completes in an editor.
        return text | {"enum": [word for word in limit.pattern.split("|") if word]}
    if limit.pattern:
        text["pattern"] = f"^(?:{limit.pattern})$"
    if limit.required:
        text["minLength"] = 1
    if limit.max_length:
        text["maxLength"] = limit.max_length
    return text


def _enum(enum: EnumDescriptor, comments: Mapping[str, str]) -> Schema:
    """Short names for people, whole ones as protobuf JSON writes them."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    values = [value for value in enum.values if value.number]
    short = [value.name.removeprefix(prefix).lower() for value in values]
    meanings = [comments.get(f"{enum.full_name}.{value.name}", "") for value in values]
    # yaml-language-server shows them beside the names.
    return {"enum": [*short, *(value.name for value in values)], "enumDescriptions": [*meanings, *meanings]}


def _record(kind: type, message: Descriptor, comments: Mapping[str, str], leave_out: Iterable[str] = ()) -> Schema:
    properties: Schema = {}
    required = []
    for field in fields(kind):
        if field.name in leave_out:
            continue
        words = comments.get(f"{message.full_name}.{field.name}")
        properties[field.name] = ({"description": words} if words else {}) | _of_type(field.name, str(field.type))
        if field.default is MISSING:
            required.append(field.name)
        elif field.default != ():
            properties[field.name]["default"] = field.default
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": required}


def _of_type(name: str, kind: str) -> Schema:
    match kind:
        case "bool" | "<class 'bool'>":
            return {"type": "boolean"}
        case "float" | "<class 'float'>":
            return {"type": "number", "exclusiveMinimum": 0}
        case "str" | "<class 'str'>":
            most = constitution.MOST_CHARACTERS.get(name, constitution.MOST_TEXT)
            pattern = {"pattern": f"^{constitution.ID.pattern}$"} if name in ("id", "dimension") else {}
            return {"type": "string", "minLength": 1, "maxLength": most, **pattern}
    found = re.search(r"(Principle|RevisionExample|Example)\b", kind)
    if found is None:
        raise AssertionError(f"no schema for the type {kind} of a constitution's {name}")
    return {"type": "array", "items": {"$ref": f"#/definitions/{found[1]}"}}


def _comments() -> dict[str, str]:
    """The comment in front of each message, field, enum and value of the contracts, by its full name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.binpb"
        protos = sorted(str(path) for path in (ROOT / "protos" / "charter" / "v1").glob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protos"), "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={file}", *protos], check=True)
        found = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    comments: dict[str, str] = {}
    for proto in found.file:
        for location in proto.source_code_info.location:
            if name := _name(proto, list(location.path)):
                comments[name] = " ".join(location.leading_comments.split())
    return comments


def _name(proto: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """Full name of what a path of the source info leads to; empty for anything else."""
    match path:
        case [4, message]:
            return f"{proto.package}.{proto.message_type[message].name}"
        case [4, message, 2, field]:
            return f"{proto.package}.{proto.message_type[message].name}.{proto.message_type[message].field[field].name}"
        case [5, enum, 2, value]:
            return f"{proto.package}.{proto.enum_type[enum].name}.{proto.enum_type[enum].value[value].name}"
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
