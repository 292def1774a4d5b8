"""What the files of a model say without loading it: only those that are on this machine are asked."""

import json
import os
from pathlib import Path
from typing import Any

# As transformers' configs name it.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


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


def _config(model: str) -> dict[str, Any] | None:
    # Whatever the name is, this and what follows raise nothing.
    if not os.path.isdir(model):
        file = _cached(model)
        return None if file is None else _read(file)
    file = Path(model) / "config.json"
    if not file.is_file():
        raise ValueError(f"the folder {model} holds no config.json: it is no model")
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return config


def _cached(hub_id: str) -> Path | None:
    """The config of a hub model that was fetched before.

    The layout is documented (huggingface_hub, "Understand caching"); its own function imports an HTTP client.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    newest = folder / "refs" / "main"
    if not os.path.isfile(newest):
        return None
    file = folder / "snapshots" / newest.read_text(encoding="utf-8").strip() / "config.json"
    return file if file.is_file() else None
