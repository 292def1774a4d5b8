"""A base model becomes a chat model: template, end of turn and padding, and only the weights that must change do."""

import json
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.inference import base_model
from charter.inference.base_model import as_chat_model
from charter.inference.chat_template import ChatTokenizer
from charter.spec.chat_form import ChatForm, Origin, is_base, origin_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support.tiny import make_tiny_model

CONVERSATION = (ChatMessage("user", "Hi"),)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(base_model, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Has ChatML's tokens and no template."""
    folder = make_tiny_model(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def bare(base: Path) -> Path:
    """Ends a text with its only token that could be used for padding."""
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    GenerationConfig(eos_token_id=0).save_pretrained(base)
    return base


def test_without_a_template_a_model_stays_as_it_is(base: Path) -> None:
    assert as_chat_model(str(base), ChatForm("", "")) == str(base)
    assert origin_of(str(base)) is None
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTokenizer.load(str(base))


def test_chatml_by_tokens_that_the_model_has_changes_no_weight(base: Path) -> None:
    folder = Path(as_chat_model(str(base), ChatForm("chatml", "")))
    assert (folder / "model.safetensors").samefile(base / "model.safetensors")
    tokenizer = ChatTokenizer.load(str(folder))
    assert tokenizer.render(CONVERSATION) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.eos_id] == tokenizer.encode("<|im_end|>")
    assert tokenizer.stop_ids == {tokenizer.eos_id}
    assert origin_of(str(folder)) == Origin(str(base), ChatForm("chatml", "").digest, (), "<|im_end|>")


def test_the_old_end_of_text_still_ends_an_answer_and_is_no_padding(bare: Path) -> None:
    folder = as_chat_model(str(bare), ChatForm("chatml", ""))
    tokenizer = ChatTokenizer.load(folder)
    assert tokenizer.stop_ids == {*tokenizer.encode("<|im_end|>"), *tokenizer.encode("<|endoftext|>")}
    assert [tokenizer.pad_id] == tokenizer.encode("<|pad|>")
    origin = origin_of(folder)
    assert origin is not None
    assert origin.new_tokens == ("<|pad|>",)


def test_it_is_made_once_and_again_for_another_form_or_other_weights(base: Path, cache: Path) -> None:
    chatml = ChatForm("chatml", "")
    first = as_chat_model(str(base), chatml)
    made = (Path(first) / "tokenizer.json").stat().st_mtime_ns
    assert as_chat_model(str(base), chatml) == first
    assert (Path(first) / "tokenizer.json").stat().st_mtime_ns == made
    assert as_chat_model(str(base), ChatForm("chatml", "<|endoftext|>")) != first
    make_tiny_model(base, seed=1)
    assert as_chat_model(str(base), chatml) != first
    # Nothing half-made is left, not even by a process that was killed.
    (cache / "charter" / ".making-killed").mkdir()
    make_tiny_model(base, seed=2)
    as_chat_model(str(base), chatml)
    assert [one.name for one in (cache / "charter").iterdir() if one.name.startswith(".")] == []


def test_weights_of_the_old_kind_are_read(base: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    folder = Path(as_chat_model(str(base), ChatForm("chatml", "")))
    saved = load_file(folder / "model.safetensors")
    before = torch.load(base / "pytorch_model.bin")
    assert all(torch.equal(saved[name], before[name]) for name in saved)
    assert saved
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match="has no weights that can be read"):
        as_chat_model(str(base), ChatForm("chatml", ""))


def test_a_model_without_a_template_of_its_own_is_a_base(base: Path, tiny_model: Path) -> None:
    assert is_base(as_chat_model(str(base), ChatForm("chatml", "")))
    assert not is_base(as_chat_model(str(tiny_model), ChatForm("chatml", "<|endoftext|>")))
    assert not is_base(str(tiny_model))


def test_a_new_token_begins_as_the_mean_of_all_others(base: Path) -> None:
    folder = as_chat_model(str(base), ChatForm("chatml", "<|end|>"))
    before = load_file(base / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = len(AutoTokenizer.from_pretrained(base))
    added = tokenizer.convert_tokens_to_ids("<|end|>")
    origin = origin_of(folder)
    assert origin is not None
    assert origin.new_tokens == ("<|end|>",)
    assert tokenizer.eos_token == "<|end|>"
    rows = model.get_input_embeddings().weight.detach()
    expected = before["model.embed_tokens.weight"][:known]
    assert torch.equal(rows[:known], expected)
    torch.testing.assert_close(rows[added], expected.mean(dim=0))
    unchanged = {
        name: tensor for name, tensor in before.items() if "embed_tokens" not in name and "lm_head" not in name
    }
    assert unchanged
    for name, tensor in unchanged.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_template_from_another_model_brings_its_tokens(base: Path, tiny_model: Path) -> None:
    folder = as_chat_model(str(base), ChatForm(str(tiny_model), ""))
    assert ChatTokenizer.load(folder).render(CONVERSATION) == ChatTokenizer.load(str(tiny_model)).render(CONVERSATION)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_what_the_form_lacks_is_said(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ValueError, match="eos_token is needed"):
        as_chat_model(str(base), ChatForm(str(file), ""))
    with pytest.raises(ValueError, match="has no chat template to take"):
        as_chat_model(str(base), ChatForm(str(base), ""))
    file.write_text("always the same")
    with pytest.raises(ValueError, match="leaves out messages"):
        as_chat_model(str(base), ChatForm(str(file), "<|im_end|>"))
    with pytest.raises(OSError, match="no model folder"):
        as_chat_model("./nowhere", ChatForm("chatml", ""))


def test_the_form_has_the_same_digest_wherever_the_file_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jinja", tmp_path / "other.jinja"
    for file in (one, other):
        file.write_text("{{ messages }}")
    digests = {ChatForm(str(file), "<eos>").digest for file in (one, other)}
    assert len(digests) == 1
    assert ChatForm(str(one), "<other>").digest not in digests
