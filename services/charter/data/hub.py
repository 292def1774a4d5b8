"""Data sets of the Hugging Face hub: ``hub:ORG/NAME[@REVISION][:CONFIG][:SPLIT]``.

Files are fetched once, by the commit that the revision (``main`` unless said) means then, into the hub's own cache. A
commit whose files are there needs no network; any other revision is asked for, and taken as it was last where the hub
cannot be reached.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json
from charter.data.errors import DataError
from charter.data.hub_splits import chosen_files, splits_of
from charter.data.rows import ENDINGS

PREFIX = "hub:"
_NAME = re.compile(r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?P<words>(?::[\w.-]+){0,2})")
# What people write for it: the name alone, or its page.
_MEANT = re.compile(
    r"(?:hf://datasets/|https://(?:huggingface\.co|hf\.co)/datasets/)?"
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<words>(?::[\w.-]+){0,2})/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CARD = "README.md"
# Seconds to wait for what the hub says of a data set.
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set of the hub; ``words`` name a configuration, a split or both."""

    name: str
    revision: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "HubSet":
        """Raises ``DataError`` for what is no such name."""
        matched = _NAME.fullmatch(text)
        if matched is None:
            raise DataError([f"{text} is no hub data set: write hub:ORG/NAME[@REVISION][:CONFIG][:SPLIT]"])
        words = tuple(word for word in matched["words"].split(":") if word)
        return cls(matched["name"], matched["revision"] or "main", words)

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return ":".join([f"{PREFIX}{self.name}@{self.revision}", *self.words])

    def pinned(self) -> "HubSet":
        """The same at the commit that its revision means now. Raises as ``files``."""
        return replace(self, revision=_listing(self).commit)

    def cached(self) -> "HubSet | None":
        """The same at the commit that is in the cache with all its files, or None; no network is asked."""
        found = _remembered(self)
        if found is None:
            return None
        pinned = replace(self, revision=found.commit)
        try:
            _fetched(pinned, found)
        except DataError:
            return None
        return pinned

    def files(self) -> list[tuple[Path, str]]:
        """Its files in the cache, fetched where they are not there, and the name of each for people.

        Raises ``DataError`` for an unknown name, revision, configuration or split, and where the hub cannot be reached.
        """
        listing = _listing(self)
        return _fetched(replace(self, revision=listing.commit), listing)


def meant_for_hub(place: str) -> str:
    """What to say of a file that is not there where its name looks like a data set of the hub; else nothing."""
    matched = _MEANT.fullmatch(place)
    if matched is None or place.lower().endswith(ENDINGS):
        return ""
    return f"; a data set of the hub is written {PREFIX}{matched['name']}{matched['words']}"


@dataclass(frozen=True, slots=True)
class _Listing:
    """The commit that a revision means, and its files; ``reached`` where the hub said so just now."""

    commit: str
    names: Sequence[str]
    reached: bool


def _fetched(pinned: HubSet, listing: _Listing) -> list[tuple[Path, str]]:
    local = not listing.reached
    card = _card_of(_file(pinned, _CARD, local=local)) if _CARD in listing.names else {}
    try:
        chosen = chosen_files(splits_of(listing.names, card), pinned.words, card)
    except DataError as error:
        raise DataError([f"{PREFIX}{pinned.name} {error}"]) from error
    shown = f"{PREFIX}{pinned.name}@{pinned.revision[:7]}"
    return [(_file(pinned, name, local=local), f"{shown}/{name}") for name in chosen]


def _listing(wanted: HubSet) -> _Listing:
    # Here, not at the top: who reads files of this machine waits for no HTTP client.
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = _remembered(wanted)
    if known is not None and _COMMIT.fullmatch(wanted.revision) and wanted.cached():
        return known
    where = f"{PREFIX}{wanted.name}"
    try:
        info = HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=_PATIENCE)
    except GatedRepoError as error:
        raise DataError([f"{where} is gated: ask for access on its page, and set HF_TOKEN"]) from error
    except RepositoryNotFoundError as error:
        raise DataError([f"there is no data set {where} on the hub, or it is private: then set HF_TOKEN"]) from error
    except RevisionNotFoundError as error:
        raise DataError([f"{where} has no revision {wanted.revision}"]) from error
    except HFValidationError as error:
        raise DataError([f"{where} is no name of a data set: {error}"]) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        if known is not None:
            return known
        raise DataError([f"the hub cannot be reached for {where}, and it is not in the cache: {error}"]) from error
    if info.sha is None:
        raise DataError([f"the hub names no commit of {where}"])
    names = [one.rfilename for one in info.siblings or ()]
    for revision in {wanted.revision, info.sha}:
        file = _memory(wanted.name, revision)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"commit": info.sha, "files": names})
    return _Listing(info.sha, names, reached=True)


def _file(pinned: HubSet, name: str, *, local: bool) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = hf_hub_download(pinned.name, name, repo_type="dataset", revision=pinned.revision, local_files_only=local)
    except (LocalEntryNotFoundError, HTTPError) as error:
        raise DataError([f"{name} of {pinned} is not in the cache, and cannot be fetched: {error}"]) from error
    return Path(path)


def _memory(name: str, revision: str) -> Path:
    """Where the files of a revision are listed. Without a list, a set of which files are missing would look whole."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return _folder(Path(HF_HUB_CACHE), name) / "charter" / f"{revision.replace('/', '--')}.json"


def _folder(cache: Path, name: str) -> Path:
    return cache / f"datasets--{name.replace('/', '--')}"


def _remembered(wanted: HubSet) -> _Listing | None:
    """What was fetched before, by us or by the hub's own client."""
    from huggingface_hub.constants import HF_HUB_CACHE

    file = _memory(wanted.name, wanted.revision)
    if file.is_file():
        listed = json.loads(file.read_text(encoding="utf-8"))
        return _Listing(str(listed["commit"]), listed["files"], reached=False)
    folder = _folder(Path(HF_HUB_CACHE), wanted.name)
    reference = folder / "refs" / wanted.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted.revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return _Listing(commit, names, reached=False)


def _card_of(path: Path) -> Mapping[str, Any]:
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except ValueError as error:
        raise DataError([f"{path}: the data card cannot be read: {error}"]) from error
