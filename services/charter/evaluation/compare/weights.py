"""Names the weights of a model by the content of its files."""

import hashlib
from pathlib import Path

from charter.spec.models import folder_of

_ENDINGS = (".safetensors", ".bin")


def weights_digest(model: str) -> str:
    """sha256 over names and contents of the weight files of a folder or cached hub model; empty where none are here."""
    folder = folder_of(model)
    files = [] if folder is None else sorted(one for one in Path(folder).iterdir() if one.suffix in _ENDINGS)
    if not files:
        return ""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{file.name}\0{digest}\0".encode())
    return whole.hexdigest()
