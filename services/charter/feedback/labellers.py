"""Who may label, and by which token they sign in."""

import json
import re
import secrets
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from charter.atomic_files import replacing

_NAME = re.compile(r"[\w][\w.@ -]{0,99}")
# Bytes of randomness in a token.
_TOKEN_BYTES = 24
_LEAST_TOKEN = 16


class LabellersError(ValueError):
    """The file of labellers is malformed, or a name is none; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Labellers:
    """Tokens by labeller."""

    tokens: dict[str, str]

    def who(self, token: str) -> str | None:
        """The labeller with this token. Takes the same time whichever it is."""
        found = [name for name, known in self.tokens.items() if compare_digest(known.encode(), token.encode())]
        return found[0] if found else None


def load_labellers(file: Path) -> Labellers:
    """Read ``{"name": "token"}``; no file is nobody. Raises ``LabellersError``, or ``OSError`` if unreadable."""
    if not file.exists():
        return Labellers({})
    try:
        tokens = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabellersError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(tokens, dict) or not all(isinstance(token, str) for token in tokens.values()):
        raise LabellersError(f'{file} must hold an object such as {{"anna": "a long random token"}}')
    for name, token in tokens.items():
        _check_name(name)
        if len(token) < _LEAST_TOKEN:
            raise LabellersError(f"{file}: the token of {name} has fewer than {_LEAST_TOKEN} characters")
    if len(set(tokens.values())) < len(tokens):
        raise LabellersError(f"{file}: two labellers have the same token")
    return Labellers(tokens)


def add_labeller(file: Path, name: str) -> Labellers:
    """Give a labeller a new random token, unless they have one. The file is readable by its owner only."""
    _check_name(name)
    known = load_labellers(file)
    if name in known.tokens:
        return known
    labellers = Labellers({**known.tokens, name: secrets.token_urlsafe(_TOKEN_BYTES)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(labellers.tokens, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return labellers


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LabellersError(
            f"{name!r} is no name of a labeller: a letter or digit, then at most 99 letters, digits, . @ - _ or spaces"
        )
