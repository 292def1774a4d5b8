"""What `charter check` says of the stages before RL: template, counts of revision, lengths, slips in the YAML."""

import json
from pathlib import Path

import pytest
from charter.cli.main import app
from charter.spec import checks
from typer.testing import CliRunner

from tests.support.hub import running_hub
from tests.support.tiny import CHAT_TEMPLATE, byte_tokenizer

LEARNS = """\
name: my-run
policy: {model: ./model}
supervised:
  data: [{source: chat.jsonl}]
"""
REVISES = """\
name: my-run
policy: {model: org/policy}
judge: {model: org/judge, constitution: rules.yaml}
prompts: {train: [train.jsonl], held_out: [held.jsonl]}
"""
CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which?", critique: Why., revise: Do., follow: Yes., oppose: No.}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` with a chat template, ``base`` without one; a token a byte, both without weights."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("model", "base"):
        byte_tokenizer().save_pretrained(folder / name)
        (folder / name / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "base" / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def folder(tmp_path: Path, models: Path) -> Path:
    for name in ("model", "base"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "rules.yaml").write_text(CONSTITUTION)
    for name, count in (("train", 12), ("held", 8)):
        rows = [{"prompt": f"{name} {n}", "dimension": "helpful" if n % 2 else "harmless"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_chats(tmp_path, [40, 50, 60])
    (tmp_path / "good.jinja").write_text(CHAT_TEMPLATE)
    (tmp_path / "broken.jinja").write_text("{% for message in messages %}{{ message['content'] }}")
    (tmp_path / "deaf.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>")
    (tmp_path / "refuses.jinja").write_text("{{ raise_exception('no chat') }}")
    (tmp_path / "fails.jinja").write_text("{{ messages[0]['content'] + 1 }}")
    return tmp_path


def write_chats(folder: Path, lengths: list[int]) -> None:
    """Conversations of so many tokens each, without those of a template."""
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x" * (length - 2)}]}
        for length in lengths
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(folder: Path, text: str) -> list[str]:
    (folder / "spec.yaml").write_text(text)
    return [str(one) for one in checks.check_file(folder / "spec.yaml", to_serve=True).file.problems]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("model: ./base, chat_template: chatml", ""),
        ("model: ./base, chat_template: ./model", ""),
        ("model: ./base, chat_template: good.jinja, eos_token: <|im_end|>", ""),
        # A hub model that is not here may have one.
        ("model: ./base, chat_template: org/chat-model", ""),
        ("model: ./base", "policy.chat_template: is needed: the tokenizer of policy.model has none"),
        ("model: ./base, chat_template: chatlm", "policy.chat_template: is chatlm: did you mean chatml?"),
        ("model: ./base, chat_template: Chat-ML", "policy.chat_template: is Chat-ML: did you mean chatml?"),
        ("model: ./base, chat_template: zephyr", "policy.chat_template: is zephyr, which is neither chatml, nor"),
        ("model: ./base, chat_template: gone.jinja, eos_token: x", "policy.chat_template: no such file: "),
        ("model: ./base, chat_template: ./gone", "policy.chat_template: no such model folder: "),
        ("model: ./base, chat_template: ./base", "policy.chat_template: takes the template of "),
        ("model: ./base, chat_template: good.jinja", "policy.eos_token: is required with a template file"),
        ("model: ./base, chat_template: good.jinja, eos_token: <|im_edn|>", "policy.eos_token: is <|im_edn|>, and"),
        ("model: ./base, chat_template: chatml, eos_token: <|im_edn|>", "policy.eos_token: is <|im_edn|>, and"),
        ("model: ./base, chat_template: broken.jinja, eos_token: <|im_end|>", "policy.chat_template: is no Jinja"),
        ("model: ./base, chat_template: deaf.jinja, eos_token: <|im_end|>", "policy.chat_template: leaves out what"),
        ("model: ./base, chat_template: refuses.jinja, eos_token: <|im_end|>", "policy.chat_template: refuses every"),
        ("model: ./base, chat_template: fails.jinja, eos_token: <|im_end|>", "policy.chat_template: refuses every"),
    ],
)
def test_a_chat_template_of_no_use_is_named(folder: Path, policy: str, expected: str) -> None:
    text = LEARNS.replace("model: ./model", policy)
    assert [one[: len(expected)] for one in found(folder, text)] == ([expected] if expected else [])


def test_texts_alone_need_no_chat_template(folder: Path) -> None:
    (folder / "book.txt").write_text("Once upon a time.")
    assert found(folder, "name: x\npolicy: {model: ./base}\npretraining: {data: [{source: book.txt}]}\n") == []


def test_adapters_do_not_learn_new_tokens(folder: Path) -> None:
    """`<|end|>` stands in the template, and the model has no such token."""
    (folder / "new.jinja").write_text(CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"))
    policy = "model: ./base, chat_template: new.jinja, eos_token: <|end|>"
    text = LEARNS.replace("model: ./model", policy)
    assert found(folder, text) == []
    (problem,) = found(folder, text + "  lora_rank: 8\n")
    assert problem.startswith("supervised.lora_rank: trains no embeddings")
    assert "<|end|>" in problem
    # Fitted from the policy as it is named, a preference model reads them too.
    whole = REVISES.replace("model: org/policy", policy) + "preference_model: {lora_rank: 8}\n"
    (problem,) = found(folder, whole)
    assert problem.startswith("preference_model.lora_rank: trains no embeddings")
    assert found(folder, whole.replace("{lora_rank", "{model: ./model, lora_rank")) == []


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("{dimensions: [helpful], prompts: 6, gate_prompts: 4}", []),
        ("{}", []),
        ("{prompts: 13}", ["revision.prompts: is 13, and prompts.train holds 12 different ones"]),
        ("{dimensions: [harmless], prompts: 7}", ["revision.prompts: is 7, and prompts.train holds 6 of harmless"]),
        ("{gate_prompts: 9}", ["revision.gate_prompts: is 9, and prompts.held_out holds 8 different ones"]),
        ("{dimensions: [helpful], gate_prompts: 5}", ["revision.gate_prompts: is 5, and prompts.held_out holds 4 of"]),
        (
            "{dimensions: [helpful, harmles]}",
            ["revision.dimensions[1]: is harmles, which no prompt of prompts.train has; did you mean harmless?"],
        ),
        (
            "{dimensions: [honest]}",
            ["prompts.held_out: none of them is of honest", "revision.dimensions[0]: is honest, which no prompt"],
        ),
    ],
)
def test_counts_and_dimensions_of_revision_are_there(folder: Path, revision: str, expected: list[str]) -> None:
    problems = found(folder, f"{REVISES}revision: {revision}\n")
    assert [one[: len(start)] for one, start in zip(problems, expected, strict=True)] == expected


def test_a_limit_that_leaves_nothing_is_named(folder: Path) -> None:
    (problem,) = found(folder, LEARNS + "  max_tokens: 39\n")
    assert problem.startswith("supervised.max_tokens: is 39, and ")
    assert "at least 40 tokens in each of the 3" in problem
    prompts = REVISES.replace("org/policy", "./model") + "preference_model: {model: org/policy}\n"
    problems = found(folder, prompts.replace("[held.jsonl]", "[held.jsonl], max_prompt_tokens: 5"))
    assert [one.split(":")[0] for one in problems] == ["prompts.max_prompt_tokens"] * 2


def test_what_a_limit_leaves_out_and_what_is_not_here_is_said(folder: Path) -> None:
    (folder / "spec.yaml").write_text(
        LEARNS.replace("{source: chat.jsonl}", "{source: chat.jsonl}, {source: 'hub:org/chats'}") + "  max_tokens: 55\n"
    )
    shown = CliRunner().invoke(app, ["check", str(folder / "spec.yaml")], env={"COLUMNS": "500"})
    assert shown.exit_code == 0, shown.output
    assert "spec.yaml:4: supervised.data[0].source: 1 of the 3 of " in shown.output
    assert "Not looked into:\n  supervised.data[1].source: hub:org/chats is not in the hub's cache" in shown.output
    assert "charter check --fetch" in shown.output
    said = json.loads(CliRunner().invoke(app, ["check", str(folder / "spec.yaml"), "--json"]).stdout)
    assert said["valid"]
    assert [one["field"] for one in said["not_looked_into"]] == ["supervised.data[1].source"]
    assert [(one["line"], one["field"]) for one in said["remarks"]] == [(4, "supervised.data[0].source")]


def test_a_fetched_data_set_is_looked_into(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "spec.yaml").write_text(LEARNS.replace("chat.jsonl", "'hub:org/chats'"))
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.put("org/chats", {"train.jsonl": b'{"prompt": "no answer"}\n'})
        shown = CliRunner().invoke(app, ["check", str(folder / "spec.yaml"), "--fetch", "--json"])
        missing = CliRunner().invoke(app, ["check", str(folder / "spec.yaml").replace("spec", "gone"), "--fetch"])
    assert missing.exit_code == 1
    problems = json.loads(shown.stdout)["problems"]
    assert [one["field"] for one in problems] == ["supervised.data[0].source"]
    assert "line 1" in problems[0]["problem"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("supervised:", "supervised: is empty: write `supervised: {data: [{source: FILE}]}`, or leave the line out"),
        ("supervised: {data: [{source: chat.jsonl}]}\nrevision:", "revision: is empty: write `revision: {}` to have"),
        ("supervised: {data: [{source: chat.jsonl}]}\nsampling:", "sampling: is empty: write `sampling: {}`"),
        ("supervised: {data: [{source: chat.jsonl}], epochs: }", "supervised.epochs: is empty: write a value"),
        ("supervised: {data: [{source: chat.jsonl}]}\nsinks:", "sinks: is empty: write a value"),
        ("supervised: [x]", "supervised: expected a mapping, as `supervised: {data: [{source: chat.jsonl}]}`"),
        ("supervised: chats.jsonl", "supervised: expected a mapping, as `supervised: {data: [{source: chats.jsonl}]}`"),
        ("supervisd: {data: [{source: chat.jsonl}]}", "supervisd: unknown field; did you mean `supervised`?"),
        ("supervised: {data: c.jsonl}", "supervised.data: expected a list, as `data: [{source: c.jsonl}]`"),
        (
            "supervised: {data: {source: c.jsonl}}",
            "supervised.data: expected a list, as `data: [{source: chat.jsonl}]`",
        ),
        ("supervised: {data: [c.jsonl]}", "supervised.data[0]: expected a mapping, as `{source: c.jsonl}`"),
        ("supervised: {data: [a.jsonl, b.jsonl]}", "supervised.data[0]: expected a mapping, as `{source: a.jsonl}`"),
    ],
)
def test_one_slip_is_one_mistake_that_says_what_to_write(folder: Path, text: str, expected: str) -> None:
    problems = found(folder, f"name: my-run\npolicy: {{model: ./model}}\n{text}\n")
    if "revision" in text:
        # It needs a judge and prompts, whatever it holds.
        problems = [one for one in problems if one.startswith("revision")]
    assert len(problems) == (2 if "b.jsonl" in text else 1)
    assert problems[0].startswith(expected)


def test_a_written_null_is_an_unset_field(folder: Path) -> None:
    assert found(folder, LEARNS + "  patience: null\nrevision: null\n") == []


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("org/name", "hub:org/name"),
        ("org/name:train", "hub:org/name:train"),
        ("org/name#messages", "hub:org/name"),
        ("https://huggingface.co/datasets/org/name", "hub:org/name"),
        ("hf://datasets/org/name", "hub:org/name"),
        ("data/chat.jsonl", ""),
        ("./org/name", ""),
    ],
)
def test_a_data_set_of_the_hub_without_its_mark_is_recognised(folder: Path, source: str, meant: str) -> None:
    (problem,) = found(folder, LEARNS.replace("chat.jsonl", f"'{source}'"))
    assert problem.startswith("supervised.data[0].source: no such file: ")
    assert problem.endswith(f"; a data set of the hub is written {meant}") == bool(meant)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("revision: {accept: judged}", "revision.accept: must be one of all, judged_better, is `judged`"),
        ("revision: {on_no_gain: go}", "revision.on_no_gain: must be one of stop, skip, continue, is `go`"),
        ("ppo: {precision: fp16}", "ppo.precision: must be one of float32, bfloat16, is `fp16`"),
        ("services: {weights_folder: here}", "services.weights_folder: must be an absolute path, such as"),
    ],
)
def test_what_a_text_must_be_is_said_in_words(folder: Path, more: str, expected: str) -> None:
    (problem,) = found(folder, f"{REVISES}{more}\n")
    assert problem.startswith(expected)
