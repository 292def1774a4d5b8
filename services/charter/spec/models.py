"""What the files of a model say without loading it: only those that are on this machine are asked."""

import json
import os
from pathlib import Path
from typing import Any

# As transformers' configs name it.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_TOKENIZER_CONFIG = "tokenizer_config.json"


def context_tokens(model: str) -> int | None:
    """Tokens that fit into a model's context; None where its config is not here, or does not say.

    Raises ``ValueError`` for a folder without a config that can be read.
    """
    config = _config(model)
    if config is None:
        return None
    # A model that sees images keeps the config of its language model inside.
    text = config.get("text_config") or config
    found = next((text[key] for key in _CONTEXT_KEYS if isinstance(text.get(key), int)), None)
    return None if found is None else int(found)


def has_chat_template(model: str) -> bool | None:
    """Whether a model's tokenizer has a chat template; None where no tokenizer is on this machine to ask.

    Raises ``ValueError`` for a config of the tokenizer that cannot be read.
    """
    folder = folder_of(model)
    if folder is None or not os.path.isfile(folder / _TOKENIZER_CONFIG):
        return None
    if os.path.isfile(folder / "chat_template.jinja") or os.path.isfile(folder / "chat_template.json"):
        return True
    return bool(_read(folder / _TOKENIZER_CONFIG).get("chat_template"))


def knows_token(model: str, token: str) -> bool | None:
    """Whether a model's tokenizer has a token of its own for a text; None where no such tokenizer is here to ask."""
    file = tokenizer_file(model)
    if file is None:
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    added = {one.get("content") for one in content.get("added_tokens", ())}
    # A list of pairs in some kinds of models.
    vocabulary = content.get("model", {}).get("vocab", {})
    return token in added or (token in vocabulary if isinstance(vocabulary, dict) else None)


def tokenizer_file(model: str) -> Path | None:
    """The file that the library ``tokenizers`` reads, where it is on this machine."""
    folder = folder_of(model)
    file = None if folder is None else folder / "tokenizer.json"
    return file if file is not None and os.path.isfile(file) else None


def folder_of(model: str) -> Path | None:
    """A model's folder: a local one, or that of a hub model that was fetched before.

    The layout is documented (huggingface_hub, "Understand caching"); its own function imports an HTTP client.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    # Whatever the name is, this and what follows raise nothing.
    if os.path.isdir(model):
        return Path(model)
    folder = Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    newest = folder / "refs" / "main"
    if not os.path.isfile(newest):
        return None
    snapshot = folder / "snapshots" / newest.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else None


def _config(model: str) -> dict[str, Any] | None:
    folder = folder_of(model)
    if folder is None:
        return None
    file = folder / "config.json"
    if file.is_file():
        return _read(file)
    if os.path.isdir(model):
        raise ValueError(f"the folder {model} holds no config.json: it is no model")
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return config
