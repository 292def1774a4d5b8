"""How a spec gives a chat template to a model that has none, without reading the model."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

CHATML = "chatml"


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
