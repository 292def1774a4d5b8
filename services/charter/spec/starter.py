"""Writes a first run for a model: a commented spec, a constitution, and a few prompts to replace."""

import json
import os
import re
from pathlib import Path
from string import Template

from charter.atomic_files import write_text
from charter.spec.models import context_tokens

HERE = Path(__file__).resolve().parent
SCHEMAS = HERE / "schemas"
# Templates, by the file that is made from each.
FILES = {
    "run.yaml": "run.yaml",
    "constitution.yaml": "constitution.yaml",
    "prompts/train.jsonl": "train.jsonl",
    "prompts/held_out.jsonl": "held_out.jsonl",
}
# Where the model's context is shorter, less: a prompt may take two thirds of it.
_PROMPT_TOKENS, _ANSWER_TOKENS = 512, 256


class StarterError(ValueError):
    """The files cannot be written; the message says why."""


def write_starter(model: str, folder: Path) -> list[Path]:
    """Write ``FILES`` into a folder, which is made, and return their paths.

    ``model`` is a hub id, or a folder as seen from here. Raises ``StarterError`` when one of the files is there
    already, or the model is a folder that holds none, ``OSError``.
    """
    if there := [str(folder / name) for name in FILES if os.path.lexists(folder / name)]:
        raise StarterError(f"nothing is overwritten, and there is already {', '.join(there)}: name another folder")
    values = _values(model, folder)
    written = []
    for name, template in FILES.items():
        text = (HERE / "starter" / template).read_text(encoding="utf-8")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, Template(text).substitute(values) if name.endswith(".yaml") else text)
        written.append(path)
    return written


def _values(model: str, folder: Path) -> dict[str, str]:
    """What stands in the templates."""
    local = os.path.isdir(model)
    if not local and (model.startswith((".", "/", "~")) or not model or "\0" in model):
        raise StarterError(f"no such model folder: {model}")
    try:
        context = context_tokens(model)
    except ValueError as error:
        raise StarterError(str(error)) from error
    # The preference model reads an EOS behind both.
    room = context - 1 if context else _PROMPT_TOKENS + _ANSWER_TOKENS
    held_out = (HERE / "starter" / FILES["prompts/held_out.jsonl"]).read_text(encoding="utf-8")
    return {
        "name": _name_of(Path(model).resolve().name if local else model.rpartition("/")[2]),
        # JSON text is YAML text, whatever the name holds.
        "model": json.dumps(_from(folder, Path(model)) if local else model),
        "max_prompt_tokens": str(min(_PROMPT_TOKENS, room * 2 // 3)),
        "max_new_tokens": str(min(_ANSWER_TOKENS, room // 3)),
        "evaluation_prompts": str(len(held_out.splitlines())),
        "run_schema": str(SCHEMAS / "run.schema.json"),
        "constitution_schema": str(SCHEMAS / "constitution.schema.json"),
    }


def _from(folder: Path, model: Path) -> str:
    """A model's folder as seen from the spec's, so that both can be moved together."""
    relative = os.path.relpath(model.resolve(), folder.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def _name_of(model: str) -> str:
    """A run's name from a model's: lower-case letters, digits and hyphens, at most 62."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:62].strip("-") or "my-run"
