"""Makes a chat model of a base model: the same weights, with a chat template and a token that ends an answer.

The result is an ordinary folder beside the hub's cache, so that whatever loads it (transformers, vLLM, the trainer)
needs to know nothing of this. It is made once for each model and form; weights that need no change are links.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from charter.inference.chat_template import ChatTokenizer, ids_of, loading, padding_id
from charter.inference.local.model import load_whole
from charter.spec.chat_form import CHATML, CHATML_TOKENS, ORIGIN, ChatForm, Origin

_CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PAD = "<|pad|>"
# What is loaded of a hub model.
_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Weights as models had them before safetensors.
_OLD_WEIGHTS = "pytorch_model*.bin"


@dataclass(frozen=True, slots=True)
class _Form:
    """A template as text, the token that ends an answer, and the tokens that must be one token each."""

    template: str
    eos_token: str
    tokens: tuple[str, ...]


def as_chat_model(model: str, form: ChatForm) -> str:
    """Folder of ``model`` with this form, made now if it is not there; ``model`` itself for a form without a template.

    Raises ``OSError`` when one of the models cannot be loaded or the template file cannot be read, ``ValueError`` for a
    form that is not whole.
    """
    if not form.template:
        return model
    with loading(model):
        source = Path(model) if os.path.isdir(model) else _fetched(model)
    if not _weights(source):
        raise FileNotFoundError(
            f"the model {model!r} has no weights that can be read (*.safetensors or {_OLD_WEIGHTS}): convert them with "
            "transformers (from_pretrained, then save_pretrained) and give that folder"
        )
    target = Path(HF_HOME) / "charter" / f"{Path(model).name}-chat-{_digest(source, form)[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            # Unless another service of this machine was faster.
            if not target.is_dir():
                _make_whole(model, source, form, target)
    return str(target)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process makes a model in ``folder`` meanwhile. A lock that a killed process held is free."""
    with (folder / "making.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_whole(model: str, source: Path, form: ChatForm, target: Path) -> None:
    for left in target.parent.glob(".making-*"):
        # By a process that was killed.
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        _make(model, source, form, making)
        making.chmod(0o755)
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _fetched(model: str) -> Path:
    """The snapshot of a hub model, with old weights only where it has no others."""
    folder = Path(snapshot_download(model, allow_patterns=_MODEL_FILES))
    return folder if _weights(folder) else Path(snapshot_download(model, allow_patterns=[*_MODEL_FILES, _OLD_WEIGHTS]))


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob(_OLD_WEIGHTS))


def _make(model: str, source: Path, form: ChatForm, folder: Path) -> None:
    read = _read(form)
    tokenizer = AutoTokenizer.from_pretrained(source)
    generation = _generation(source)
    eos_of_texts, own_template = tokenizer.eos_token or "", bool(tokenizer.chat_template)
    before = {*ids_of(generation.eos_token_id), *ids_of(tokenizer.eos_token_id)}
    tokenizer.chat_template = read.template
    new = _add(tokenizer, [token for token in read.tokens if token not in tokenizer.get_vocab()])
    tokenizer.eos_token = read.eos_token
    # A base model ends a text with its own EOS, and may still do so before it has learned the other.
    generation.eos_token_id = [tokenizer.eos_token_id, *sorted(before - {tokenizer.eos_token_id})]
    if padding_id(tokenizer, ids_of(generation.eos_token_id)) is None:
        new += _add(tokenizer, [_PAD])
        tokenizer.pad_token = _PAD
    if new or not all(file.suffix == ".safetensors" for file in _weights(source)):
        _with_rows(source, tokenizer, new).save_pretrained(folder)
    else:
        for file in source.iterdir():
            if file.is_file() and (file.name == "config.json" or file.suffix == ".safetensors" or "index" in file.name):
                (folder / file.name).symlink_to(file.resolve())
    tokenizer.save_pretrained(folder)
    generation.save_pretrained(folder)
    # As every service will: a template that loses messages is refused here, by its name.
    ChatTokenizer(tokenizer, generation)
    origin = Origin(model, form.digest, tuple(new), eos_of_texts, own_template)
    (folder / ORIGIN).write_text(json.dumps(asdict(origin)), encoding="utf-8")


def _read(form: ChatForm) -> _Form:
    if form.template == CHATML:
        eos = form.eos_token or CHATML_TOKENS[-1]
        return _Form(_CHATML_TEMPLATE, eos, tuple(dict.fromkeys((*CHATML_TOKENS, eos))))
    if os.path.isfile(form.template):
        if not form.eos_token:
            raise ValueError(
                f"policy.eos_token is needed with a template file: the token of {form.template} that ends an answer"
            )
        return _Form(Path(form.template).read_text(encoding="utf-8"), form.eos_token, (form.eos_token,))
    with loading(form.template):
        tokenizer = AutoTokenizer.from_pretrained(form.template)
    template, eos = tokenizer.chat_template, form.eos_token or tokenizer.eos_token
    if not isinstance(template, str) or not eos:
        missing = "EOS token" if isinstance(template, str) else "chat template"
        raise ValueError(f"policy.chat_template: the tokenizer of {form.template} has no {missing} to take")
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return _Form(template, eos, tuple(dict.fromkeys((*(token for token in special if token in template), eos))))


def _generation(source: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # The file is optional.
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(source))


def _add(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[str]:
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return list(tokens)


@torch.no_grad()
def _with_rows(source: Path, tokenizer: PreTrainedTokenizerBase, new: Sequence[str]) -> PreTrainedModel:
    """The model with a row for each new token, in and out: the mean of all tokens' rows (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"), so that they begin as likely as any.
    """
    model = load_whole(AutoModelForCausalLM, source, dtype="auto")
    if not new:
        return model
    known = len(tokenizer) - len(new)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = layer.weight[:known].double().mean(dim=0).to(layer.weight.dtype)
        layer.weight[tokenizer.convert_tokens_to_ids(list(new))] = mean
    return model


def _digest(source: Path, form: ChatForm) -> str:
    """Of what the folder is made from: the form, the model's small files, and the size and time of its weights."""
    found = sha256(form.digest.encode())
    for file in sorted(one for one in source.iterdir() if one.is_file()):
        if file.suffix in (".safetensors", ".bin"):
            status = file.stat()
            found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        elif file.suffix in (".json", ".model", ".txt", ".jinja"):
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()
