"""Which files of a hub data set are a configuration and split of it: as its card says, else by their names.

The rules are the hub's own ("Manual Configuration", "File names and splits" in its documentation): a card may list
``configs`` with ``data_files``; without one, the words of names and folders tell the split, and folders the
configuration.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from charter.data.errors import DataError
from charter.data.rows import ENDINGS

# Words by which names tell a split; a file without one is of `train`.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_DEFAULT = "default"

# Files by split, by configuration.
Splits = Mapping[str, Mapping[str, Sequence[str]]]


def splits_of(files: Sequence[str], card: Mapping[str, Any]) -> Splits:
    """The files of each split of each configuration, in the order of their names."""
    data = sorted(name for name in files if name.lower().endswith(ENDINGS) and not _is_hidden(name))
    stated = [one for one in card.get("configs") or () if isinstance(one, Mapping) and "config_name" in one]
    if any("data_files" in one or "data_dir" in one for one in stated):
        found = {str(one["config_name"]): _stated(one, data) for one in stated}
    else:
        found = _by_names(data)
    return {config: splits for config, splits in found.items() if splits}


def chosen_files(splits: Splits, words: Sequence[str], card: Mapping[str, Any]) -> Sequence[str]:
    """The files that ``words`` name: nothing, a configuration or a split, or both.

    Unsaid, the configuration is the only one or the default, and the split is ``train`` or the only one. Raises
    ``DataError`` with what there is, for the name of the data set to stand before.
    """
    words = list(words)
    if not splits:
        raise DataError([f"holds no files that end in one of {', '.join(ENDINGS)}"])
    config = words.pop(0) if words and words[0] in splits else _default_config(splits, card)
    if config is None and len(words) == 1 and (holding := [one for one in splits if words[0] in splits[one]]):
        raise DataError([f"has the split {words[0]} in several configurations: name one of {', '.join(holding)}"])
    if config is None:
        raise DataError([f"has several configurations: name one of {', '.join(splits)}"])
    there = splits[config]
    split = words.pop(0) if words else "train" if "train" in there else next(iter(there)) if len(there) == 1 else ""
    if words or split not in there:
        wanted = f"no configuration {split} and no split {words[0]}" if words else f"no split {split}" if split else ""
        configs = f" (configurations: {', '.join(splits)})" if len(splits) > 1 else ""
        raise DataError([f"has {wanted or 'several splits'}: name one of {', '.join(there)}{configs}"])
    refuse_missing_parts(there[split])
    return there[split]


def refuse_missing_parts(files: Sequence[str]) -> None:
    """Raises ``DataError`` where names such as ``train-00000-of-00002`` tell of more files than there are.

    A cache may hold a part of a set, and no list of the whole.
    """
    there: dict[tuple[str, str], int] = {}
    for name in files:
        if part := re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\..*)", name):
            there[part[1], part[2]] = there.get((part[1], part[2]), 0) + 1
    for (before, behind), count in there.items():
        if count < int(behind[4:9]):
            raise DataError([f"lacks parts of {before}*{behind}: {count} of {int(behind[4:9])} are there"])


def _default_config(splits: Splits, card: Mapping[str, Any]) -> str | None:
    marked = [str(one["config_name"]) for one in card.get("configs") or () if one.get("default")]
    return next((one for one in (*marked, _DEFAULT) if one in splits), next(iter(splits)) if len(splits) == 1 else None)


def _stated(config: Mapping[str, Any], data: Sequence[str]) -> dict[str, list[str]]:
    """By the patterns of a card: one, several, or each with its split."""
    folder = str(config.get("data_dir") or "").strip("/")
    inside = [name for name in data if not folder or name.startswith(f"{folder}/")]
    stated = config.get("data_files")
    if stated is None:
        return _by_split(inside, folder)
    if isinstance(stated, Mapping):
        stated = [{"split": split, "path": path} for split, path in stated.items()]
    entries = stated if isinstance(stated, list) else [stated]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split", "train"), entry["path"]) if isinstance(entry, Mapping) else ("train", entry)
        patterns = [f"{folder}/{one}" if folder else one for one in (path if isinstance(path, list) else [path])]
        matched = [name for name in inside if any(_matches(name, pattern) for pattern in patterns)]
        if matched:
            found.setdefault(str(split), []).extend(matched)
    return found


def _by_names(data: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """By names alone. Folders are configurations, unless they are named as splits, or `data`."""
    by_folder: dict[str, list[str]] = {}
    for name in data:
        first = name.split("/")[0] if "/" in name else ""
        is_part = first and first != "data" and _split_of(first) is None
        by_folder.setdefault(first if is_part else _DEFAULT, []).append(name)
    return {config: _by_split(names, config if config != _DEFAULT else "") for config, names in by_folder.items()}


def _by_split(names: Sequence[str], folder: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_split_of(name.removeprefix(folder)) or "train", []).append(name)
    return found


def _split_of(name: str) -> str | None:
    """The split that a name tells: `data/train-00000-of-00002.parquet`, `dev.jsonl.gz`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in _WORDS.items() if any(word in words for word in known)), None)


def _matches(name: str, pattern: str) -> bool:
    # `**` crosses folders and may stand for none.
    return fnmatchcase(name, pattern) or ("**/" in pattern and fnmatchcase(name, pattern.replace("**/", "")))


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))
