"""How a spec gives a chat template to a model that has none, without reading the model."""

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

CHATML = "chatml"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# A name that ends so is a file, not a model.
TEMPLATE_ENDINGS = (".jinja", ".jinja2", ".j2", ".txt", ".json")
# In the folder of a model that was given a form: what it was made from.
ORIGIN = "charter_origin.json"


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A chat template, and the token that ends an answer.

    ``template`` is ``chatml``, a Jinja file, or the model (hub id or folder) to take it from; ``eos_token`` may be
    empty where that says it.
    """

    template: str
    eos_token: str

    @property
    def digest(self) -> str:
        """Names the form the same on every machine. Raises ``OSError`` for a file that cannot be read."""
        content = Path(self.template).read_text(encoding="utf-8") if os.path.isfile(self.template) else self.template
        return sha256("\0".join((content, self.eos_token)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a chat model was made from, and the digest of its form."""

    model: str
    form: str
    # Tokens that the model has never seen: their embeddings are the mean of all others.
    new_tokens: tuple[str, ...]
    # What ends a text of the base model; empty where nothing does.
    eos_token: str
    # It had a template of its own, which the form replaced.
    own_template: bool = False


def origin_of(model: str) -> Origin | None:
    """What ``as_chat_model`` made a folder from; None for every other model."""
    file = Path(model) / ORIGIN
    if not os.path.isfile(file):
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    return Origin(**values | {"new_tokens": tuple(values["new_tokens"])})


def is_base(model: str) -> bool:
    """Whether a model has learned no chat template: the one that it has was given to it."""
    origin = origin_of(model)
    return origin is not None and not origin.own_template
