"""What the files of a model say without loading it: only those that are on this machine are asked."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# As transformers' configs name it.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Files of weights, the first kind that there is.
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SHA256, _COMMIT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


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


def weight_files(folder: Path) -> Sequence[Path]:
    """The files of a model's weights, by name."""
    kinds = (sorted(one for one in folder.glob(kind) if one.is_file()) for kind in _WEIGHTS)
    return next((found for found in kinds if found), [])


def weights_digest(model: str) -> str:
    """The sha256 of a model's weights: of one file its own, of several that of theirs in the order of their names.

    Empty where they are not on this machine. Raises ``OSError``.
    """
    folder = folder_of(model)
    files = [] if folder is None else weight_files(folder)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(file_digest, files))
    if len(digests) < 2:
        return "".join(digests)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over names and contents of all files of a folder and those below it. Raises ``OSError``."""
    whole = hashlib.sha256()
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        whole.update(f"{file.relative_to(folder)}\0{file_digest(file)}\0".encode())
    return whole.hexdigest()


def file_digest(file: Path) -> str:
    """The sha256 of a file; large ones in the hub's cache are named by it."""
    name = file.resolve().name
    if file.is_symlink() and _SHA256.fullmatch(name):
        return name
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def revision_of(model: str) -> str:
    """Commit of a model in the hub's cache; empty for a folder."""
    folder = None if os.path.isdir(model) else folder_of(model)
    return folder.name if folder is not None and _COMMIT.fullmatch(folder.name) else ""


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
