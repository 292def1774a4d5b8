"""`charter prompts generate` against policy services over real channels: a fake engine's words, and a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.data.prompts import read_prompts
from charter.policy.server import PolicyConfig, build
from charter.prompts.folder import Folder
from charter.prompts.near_copies import pieces_of, similarity
from charter.prompts.split import COPY, NEAR
from typer.testing import CliRunner

from tests.support.harness import running
from tests.unit.data.files import write_rows

SECRET = "Please tell nobody of the purple elephant in my grandmother's garden tonight"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(build(PolicyConfig("fake", tmp_path_factory.mktemp("staging"), engine="fake"))) as addresses:
        yield addresses.main


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{SECRET} {n}", "dimension": "harmless" if n % 2 else "helpful"} for n in range(8)]
    return write_rows(tmp_path / "seeds.jsonl", rows)


def generate(address: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, result and what was said on stderr."""
    monkeypatch.setenv("CHARTER_POLICY_ADDRESS", address)
    found = CliRunner().invoke(app, ["prompts", "generate", *map(str, arguments), "--json"])
    return found.exit_code, json.loads(found.stdout) if found.stdout else {}, found.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_files_are_prompts_of_a_run_with_where_they_come_from(
    fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    topics = tmp_path / "topics.txt"
    topics.write_text("tea\n\nlaw\n")
    more = ("--seeds", seeds, "--count", 30, "--topics", topics, "--held-out-fraction", 0.3, "--seed", 3)
    code, made, _ = generate(fake, monkeypatch, out, *more)
    assert code == 0
    assert (made["accepted"], made["stopped"]) == (30, "enough")
    train, held_out = read_prompts(out / "train.jsonl"), read_prompts(out / "held_out.jsonl")
    assert made["sides"] == {"train": len(train), "held_out": len(held_out)}
    assert len(train) + len(held_out) == 30
    assert {one.dimension for one in train} == {"harmless", "helpful"}
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    known = {one.key for one in read_prompts(seeds)}
    for row in rows:
        come_from = row["generated"]
        assert (come_from["model"], come_from["weight_version"], come_from["method"]) == ("fake", 0, "few_shot")
        assert come_from["topic"] in ("tea", "law")
        assert len(come_from["examples"]) == 4
        assert set(come_from["examples"]) <= known
    # Nothing is near to what is on the other side.
    for one in train:
        assert all(similarity(pieces_of(one.text), pieces_of(other.text)) < NEAR for other in held_out)
    assert sum(made["refused"].values()) + 30 == made["texts"]
    assert sum(made["histogram"].values()) == 30
    assert 0 < made["distinct"]["distinct-1"] < made["distinct"]["distinct-3"] <= 1
    assert all(share < COPY for share in made["nearest_seed"])


def test_the_same_command_goes_on_and_ends_with_the_same_files(
    fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--seeds", seeds, "--held-out-fraction", 0.3)
    generate(fake, monkeypatch, whole, *more, "--count", 30)
    for count in (1, 7, 20, 30):
        code, made, _ = generate(fake, monkeypatch, parts, *more, "--count", count)
        assert (code, made["accepted"]) == (0, count)
    assert files(parts) == files(whole)
    # A kill between a prompt and the line of its try, and in the middle of either.
    lines = (whole / "tries.jsonl").read_text().splitlines(keepends=True)
    for cut in (0, 3, len(lines) - 1):
        for name, content in files(whole).items():
            (parts / name).write_bytes(content)
        (parts / "tries.jsonl").write_text("".join(lines[:cut]) + lines[cut][:5])
        with (parts / "train.jsonl").open("a") as file:
            file.write('{"prompt": "half')
        generate(fake, monkeypatch, parts, *more, "--count", 30)
        assert files(parts) == files(whole)
    code, _, said = generate(fake, monkeypatch, parts, *more, "--count", 30, "--seed", 9, "--temperature", 0.5)
    assert code == 1
    assert "was begun with another seed, temperature" in said
    # A command that failed before its first try drew nothing by its options.
    (parts / "tries.jsonl").unlink()
    code, made, _ = generate(fake, monkeypatch, parts, *more, "--count", 1, "--seed", 9)
    assert (code, made["accepted"]) == (0, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "holds something else" in generate(fake, monkeypatch, tmp_path / "mine", *more)[2]


def test_it_stops_when_nothing_new_comes_and_after_its_tries(
    fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--seeds", seeds, "--most-words", 3, "--count", 200)
    code, made, said = generate(fake, monkeypatch, tmp_path / "out", *more, "--patience", 20)
    assert (code, made["stopped"]) == (1, "nothing_new")
    assert made["refused"]["too_long"] > 0
    assert f"the last 20 tries gave nothing new: {made['accepted']} of 200 prompts were made" in said.replace("\n", "")
    code, made, said = generate(fake, monkeypatch, tmp_path / "other", *more, "--tries", 21)
    assert (code, made["stopped"], made["tries"]) == (1, "no_more_tries", 21)
    assert "Raise --tries to go on" in said


def test_no_prompt_is_shown_unless_asked_for(
    fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARTER_POLICY_ADDRESS", fake)
    command = ["prompts", "generate", str(tmp_path / "out"), "--seeds", str(seeds), "--count", "12"]
    said = CliRunner().invoke(app, command).output
    made = Folder.open(tmp_path / "out", json.loads((tmp_path / "out" / "generation.json").read_text())).prompts
    assert len(made) == 12
    assert not [one for one in made if one.text in said]
    assert "purple" not in said
    shown = CliRunner().invoke(app, [*command, "--show", "2"]).output
    assert [one.text[: len(one.text) // 2][:50] in shown for one in made[:3]] == [True, True, False]
    assert not [one for one in made if one.text in shown]


def test_rows_that_cannot_be_used_are_left_out_where_the_command_or_the_spec_says_so(
    fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with seeds.open("a") as file:
        file.write("{}\n")
    write_rows(tmp_path / "held.jsonl", [{"prompt": "May I ask?"}])
    (tmp_path / "spec.yaml").write_text(
        "name: x\npolicy: {model: org/policy}\njudge: {model: org/judge, constitution: rules.yaml}\n"
        "prompts: {train: [seeds.jsonl], held_out: [held.jsonl]}\nfailures: {on_bad_row: ON_BAD_ROW_SKIP}\n"
    )
    (tmp_path / "rules.yaml").touch()
    for name, more in (("option", ("--seeds", seeds, "--on-bad-row", "skip")), ("spec", ("--spec", "spec.yaml"))):
        code, made, said = generate(fake, monkeypatch, tmp_path / name, *more, "--count", 3)
        assert (code, made.get("accepted")) == (0, 3), said
        assert "1 of no known layout; they are in seeds.jsonl.left-out.jsonl" in said
    assert "line 9" in generate(fake, monkeypatch, tmp_path / "out", "--seeds", seeds, "--count", 3)[2]


@pytest.mark.parametrize("method", ["magpie", "plain"])
def test_a_model_writes_the_turn_of_a_user_and_goes_on_with_a_text(
    tiny_model: Path, method: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(build(PolicyConfig(str(tiny_model), tmp_path / "staging"))) as addresses:
        more = ("--method", method, "--tries", 5, "--max-new-tokens", 8, "--examples", 1, "--seeds", seeds)
        code, made, _ = generate(addresses.main, monkeypatch, tmp_path / "out", *more)
    # A random model writes no words: what it writes is counted, and nothing of it is a prompt.
    assert (code, made["tries"], made["accepted"]) == (1, 5, 0)
    assert made["refused"]["cut_off"] > 0
    drawn_by = json.loads((tmp_path / "out" / "generation.json").read_text())
    # Without examples nothing tells the dimension.
    assert drawn_by["dimensions"] == ([""] if method == "magpie" else ["helpful", "harmless"])
    assert files(tmp_path / "out")["train.jsonl"] == b""


def test_what_is_missing_is_said(fake: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, said = generate(fake, monkeypatch, tmp_path / "out")
    assert (code, "examples are needed" in said) == (1, True)
    _, _, said = generate(fake, monkeypatch, tmp_path / "out", "--seeds", seeds, "--dimension", "honest")
    assert "no seed of one turn has the dimension honest (they have harmless, helpful)" in said
    assert not (tmp_path / "out").exists()
