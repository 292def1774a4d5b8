"""Constitutions: what is read, what is refused and how it is named, and what counts as a change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from charter.cli.main import app
from charter.spec.constitution import ConstitutionError, from_proto, load_constitution, parse_constitution
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[3] / "examples" / "constitutions"

VALID = """\
name: short
version: "1"
description: Two principles.
principles:
  - id: kind
    dimension: helpful
    weight: 2
    compare: Which is kinder?
    critique: Say what is unkind.
    revise: Make it kind.
    follow: You are kind.
    oppose: You are unkind.
  - id: safe
    dimension: harmless
    compare: Which is safer?
    critique: Say what is unsafe.
    revise: Make it safe.
    follow: You are safe.
    oppose: You are unsafe.
"""


DIGEST = "d69334b9b64ee813520fb7679768b40fd59fcf093b806d433523795542105706"
WITH_EXAMPLES = VALID.replace(
    "    oppose: You are unkind.\n",
    """\
    oppose: You are unkind.
    examples:
      - {prompt: Hi, better: Hello!, worse: Go away.}
      - {prompt: Bye, better: See you., worse: At last.}
""",
)


def test_examples_are_read_and_are_part_of_the_digest() -> None:
    constitution = parse_constitution(WITH_EXAMPLES, "file.yaml")
    kind, safe = constitution.principles
    assert [(one.prompt, one.better, one.worse) for one in kind.examples] == [
        ("Hi", "Hello!", "Go away."),
        ("Bye", "See you.", "At last."),
    ]
    assert safe.examples == ()
    assert from_proto(constitution.to_proto()) == constitution
    # Without examples the digest is that of before there were any: published as a value.
    assert parse_constitution(VALID, "file.yaml").digest == DIGEST
    assert len({DIGEST, constitution.digest, parse_constitution(WITH_EXAMPLES.replace("Hi", "Ho"), "f").digest}) == 3


def problems(text: str) -> list[str]:
    with pytest.raises(ConstitutionError) as caught:
        parse_constitution(text, "file.yaml")
    return list(caught.value.problems)


def test_a_valid_file_is_read() -> None:
    constitution = parse_constitution(VALID, "file.yaml")
    assert [(one.id, one.dimension, one.weight) for one in constitution.principles] == [
        ("kind", "helpful", 2.0),
        ("safe", "harmless", 1.0),
    ]
    assert constitution.principle("safe").oppose == "You are unsafe."
    assert [one.id for one in constitution.of_dimension("harmless")] == ["safe"]
    assert constitution.source_yaml == VALID


def test_revisions_are_read_and_are_part_of_the_digest() -> None:
    given = "    revisions: [{prompt: Hi, answer: What., critique: Cold., revision: Hello!}]\n"
    constitution = parse_constitution(VALID.replace("    weight: 2\n", given), "file.yaml")
    (one,) = constitution.principles[0].revisions
    assert (one.prompt, one.answer, one.critique, one.revision) == ("Hi", "What.", "Cold.", "Hello!")
    assert from_proto(constitution.to_proto()) == constitution
    without = parse_constitution(VALID.replace("    weight: 2\n", ""), "file.yaml")
    assert constitution.digest != without.digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "weight: 2",
            "revisions: [{prompt: a, answer: b, critique: c, revision: b}]",
            "file.yaml:7: principles[0].revisions[0]: answer and revision are the same text",
        ),
        (
            "weight: 2",
            "revisions: [{prompt: a, answer: b, revision: c}]",
            "file.yaml:7: principles[0].revisions[0].critique: is missing",
        ),
        ("    weight: 2\n", "    wieght: 2\n", "file.yaml:7: principles[0].wieght: unknown field; known are id,"),
        ("weight: 2", "examples: []", "file.yaml:7: principles[0].examples: must be a list of 1 to 8 examples"),
        (
            "weight: 2",
            "examples: [{prompt: a, better: b}]",
            "file.yaml:7: principles[0].examples[0].worse: is missing",
        ),
        (
            "weight: 2",
            "examples: [{prompt: a, better: b, worse: b}]",
            "file.yaml:7: principles[0].examples[0]: better and worse are the same text",
        ),
        (
            "weight: 2",
            "examples: [{prompt: a, better: b, worse: c, why: d}]",
            "file.yaml:7: principles[0].examples[0].why: unknown field; known are prompt, better, worse",
        ),
        ("weight: 2", "weight: -1", "file.yaml:7: principles[0].weight: must be a number above 0, not '-1'"),
        ("weight: 2", "weight: '1e3'", "file.yaml:7: principles[0].weight: must be a number above 0"),
        ("weight: 2", "weight: 1e999", "file.yaml:7: principles[0].weight: must be a number above 0"),
        ("weight: 2", "weight: .inf", "file.yaml:7: principles[0].weight: must be a number above 0"),
        ("weight: 2", "weight: much", "file.yaml:7: principles[0].weight: must be a number above 0"),
        ("    revise: Make it safe.\n", "", "file.yaml:13: principles[1].revise: is missing"),
        ("compare: Which is kinder?", "compare: ''", "file.yaml:8: principles[0].compare: must not be empty"),
        ("compare: Which is kinder?", "compare: [a]", "file.yaml:8: principles[0].compare: must be text"),
        ("compare: Which is kinder?", "compare: 3", "file.yaml:8: principles[0].compare: must be text, not 3"),
        ("id: safe", "id: kind", "file.yaml:13: principles[1].id: 'kind' is taken since line 5"),
        ("id: safe", "id: Not Safe", "file.yaml:13: principles[1].id: may have lower-case letters"),
        ('version: "1"', "version: 1.0", "file.yaml:2: version: must be text, not 1.0: put it in quotes"),
        ("name: short\n", "", "file.yaml:1: name: is missing"),
        ("name: short", "name: short\nname: long", "file.yaml:2: name: is given twice"),
        ("name: short", "name: short\nrules: []", "file.yaml:2: rules: unknown field"),
        ("You are safe.", "x" * 20_001, "file.yaml:18: principles[1].follow: has 20001 characters"),
    ],
)
def test_a_problem_is_named_with_line_and_field(old: str, new: str, expected: str) -> None:
    assert VALID.count(old) == 1
    (problem,) = problems(VALID.replace(old, new))
    assert problem.startswith(expected)


def test_every_problem_is_reported_at_once() -> None:
    broken = (
        VALID.replace("weight: 2", "weight: no").replace("    oppose: You are unsafe.\n", "").replace("short", "''")
    )
    assert len(problems(broken)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "file.yaml:1: is empty"),
        ("name: [", "file.yaml:1: is not YAML"),
        ("a: 1\nb: : 2", "file.yaml:2: is not YAML"),
        ("just text", "file.yaml:1: constitution: must have the fields name"),
        ("name: x\nversion: y\nprinciples: []", "file.yaml:3: principles: must be a list with at least one"),
        ("name: x\nversion: y\nprinciples: [text]", "file.yaml:3: principles[0]: must have the fields id"),
    ],
)
def test_text_of_the_wrong_shape_is_refused(text: str, expected: str) -> None:
    assert problems(text)[0].startswith(expected)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConstitutionError, match="is not UTF-8 text"):
        load_constitution(tmp_path / "binary.yaml")


def test_the_digest_is_that_of_the_content() -> None:
    constitution = parse_constitution(VALID, "file.yaml")
    reordered = yaml.safe_dump(yaml.safe_load(VALID), sort_keys=True)
    assert parse_constitution("# a comment\n" + reordered, "other.yaml").digest == constitution.digest
    assert parse_constitution(VALID.replace("kinder", "nicer"), "file.yaml").digest != constitution.digest
    assert parse_constitution(VALID.replace("weight: 2", "weight: 3"), "file.yaml").digest != constitution.digest
    assert replace(constitution, version="2").digest != constitution.digest
    assert len(constitution.digest) == 64


@pytest.mark.parametrize("name", ["general", "customer-support"])
def test_the_shipped_constitutions_are_valid_and_survive_the_wire(name: str) -> None:
    constitution = load_constitution(EXAMPLES / f"{name}.yaml")
    assert constitution.name == name
    message = constitution.to_proto()
    assert from_proto(message) == constitution
    assert message.digest == constitution.digest
    texts = [text for one in constitution.principles for text in (one.compare, one.follow, one.oppose)]
    assert len(set(texts)) == len(texts)


def test_check_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(VALID.replace("weight: 2", "weight: no"))
    result = CliRunner().invoke(app, ["constitution", "check", str(file)])
    assert result.exit_code == 1
    assert "broken.yaml:7: principles[0].weight" in result.output.replace("\n", "")
    missing = CliRunner().invoke(app, ["constitution", "check", str(tmp_path / "none.yaml")])
    assert (missing.exit_code, "No such file" in missing.output) == (1, True)


def test_check_summarises_a_valid_file() -> None:
    result = CliRunner().invoke(app, ["constitution", "check", str(EXAMPLES / "general.yaml"), "--json"])
    found = json.loads(result.stdout)
    assert (found["principles"], found["dimensions"]) == (16, {"helpful": 6, "harmless": 6, "honest": 4})


def test_diff_names_each_change(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(VALID)
    new.write_text(VALID.replace("id: safe", "id: sure").replace("kinder", "nicer").replace('"1"', '"2"'))
    result = CliRunner().invoke(app, ["constitution", "diff", str(old), str(new), "--json"])
    changes = [(one["change"], one["principle"], one["field"]) for one in json.loads(result.stdout)]
    assert changes == [
        ("changed", "", "version"),
        ("removed", "safe", ""),
        ("changed", "kind", "compare"),
        ("added", "sure", ""),
    ]
    same = CliRunner().invoke(app, ["constitution", "diff", str(old), str(old)])
    assert (same.exit_code, same.stdout) == (0, "The constitutions say the same.\n")


@pytest.mark.parametrize("weight", ["1e3", "1E+3", "1000", "1000.0"])
def test_a_weight_may_be_written_as_people_do(weight: str) -> None:
    assert parse_constitution(VALID.replace("weight: 2", f"weight: {weight}"), "f").principles[0].weight == 1000
