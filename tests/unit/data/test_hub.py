"""Data sets of the hub, from a hub on this machine: which files are meant, what is fetched, what works without it."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.hub import HubSet
from charter.data.hub_splits import chosen_files, splits_of
from charter.data.prompts import read_prompts
from charter.data.sources import Source

from tests.support.hub import Hub, running_hub

HH = [f"{folder}/{split}.jsonl.gz" for folder in ("harmless-base", "helpful-base") for split in ("train", "test")]
PREFS = [f"data/{split}-0000{part}-of-00002.parquet" for split in ("train_prefs", "train_sft") for part in (0, 1)]
CARD = {
    "configs": [
        {
            "config_name": "default",
            "data_files": [{"split": name, "path": f"data/{name}-*"} for name in ("train_prefs", "train_sft")],
        }
    ]
}
SEVERAL = {
    "configs": [
        {"config_name": "edit", "data_files": "edit/**/*.jsonl"},
        {"config_name": "preference", "data_dir": "preference", "default": True},
    ]
}


@pytest.mark.parametrize(
    ("files", "card", "words", "expected"),
    [
        (["README.md", "train.jsonl", "valid.jsonl"], {}, [], ["train.jsonl"]),
        (["train.jsonl", "dev.jsonl"], {}, ["validation"], ["dev.jsonl"]),
        (["rows.json", ".gitattributes", "_old/train.json"], {}, [], ["rows.json"]),
        (["data/test-00000-of-00001.parquet"], {}, [], ["data/test-00000-of-00001.parquet"]),
        (["test/1.parquet", "train/1.parquet", "train/0.parquet"], {}, [], ["train/0.parquet", "train/1.parquet"]),
        (HH, {}, ["harmless-base", "test"], ["harmless-base/test.jsonl.gz"]),
        (HH, {}, ["helpful-base"], ["helpful-base/train.jsonl.gz"]),
        # HelpSteer2: files beside folders.
        (["train.jsonl.gz", "preference/preference.jsonl.gz"], {}, [], ["train.jsonl.gz"]),
        (["train.jsonl.gz", "preference/preference.jsonl.gz"], {}, ["preference"], ["preference/preference.jsonl.gz"]),
        (PREFS, CARD, ["train_prefs"], PREFS[:2]),
        (PREFS, CARD, ["default", "train_sft"], PREFS[2:]),
        (
            ["edit/a/x.jsonl", "edit/y.jsonl", "preference/train.jsonl"],
            SEVERAL,
            ["edit"],
            ["edit/a/x.jsonl", "edit/y.jsonl"],
        ),
        (["edit/a/x.jsonl", "preference/train.jsonl"], SEVERAL, [], ["preference/train.jsonl"]),
    ],
)
def test_which_files_a_name_means(
    files: list[str], card: dict[str, object], words: list[str], expected: list[str]
) -> None:
    assert list(chosen_files(splits_of(files, card), words, card)) == expected


@pytest.mark.parametrize(
    ("files", "card", "words", "problem"),
    [
        (["README.md", "train.bin"], {}, [], "holds no files that end in one of .jsonl"),
        (HH, {}, [], "has several configurations: name one of harmless-base, helpful-base"),
        (HH, {}, ["test"], "has the split test in several configurations: name one of harmless-base, helpful-base"),
        (HH, {}, ["harmless-base", "dev"], "has no split dev: name one of test, train"),
        (["a/train.json", "train.json"], {}, ["b"], r"no split b: name one of train \(configurations: a, default\)"),
        (["train.json"], {}, ["b", "train"], "has no configuration b and no split train"),
        (PREFS, CARD, [], "has several splits: name one of train_prefs, train_sft"),
        (PREFS[1:], CARD, ["train_prefs"], r"lacks parts of data/train_prefs-\*-of-00002\.parquet: 1 of 2 are there"),
    ],
)
def test_what_a_name_does_not_mean_is_said(
    files: list[str], card: dict[str, object], words: list[str], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        chosen_files(splits_of(files, card), words, card)


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": one}) + "\n" for one in prompts).encode()


def texts(source: str) -> list[str]:
    return [one.text for one in read_prompts(source)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


def test_a_set_is_fetched_once_for_a_commit(hub: Hub, tmp_path: Path) -> None:
    first = hub.put("org/set", {"train.jsonl.gz": gzip.compress(lines("a", "b")), "test.jsonl": lines("c")})
    assert texts("hub:org/set") == ["a", "b"]
    assert texts("hub:org/set:test#prompt") == ["c"]
    pinned = str(Source.parse("hub:org/set:test").pinned())
    assert pinned == f"hub:org/set@{first}:test"
    asked = len(hub.asked)
    assert texts(pinned) == ["c"]
    assert len(hub.asked) == asked
    # A newer commit is what `main` means now, and the pinned one stays.
    hub.put("org/set", {"train.jsonl": lines("new"), "test.jsonl": lines("newer")})
    assert texts("hub:org/set") == ["new"]
    assert texts(pinned) == ["c"]


def test_a_bad_row_names_the_set_the_commit_and_the_file(hub: Hub) -> None:
    commit = hub.put("org/set", {"data/train.jsonl": lines("a") + b"7\n"})
    with pytest.raises(DataError, match=f"hub:org/set@{commit[:7]}/data/train.jsonl, line 2: must be a JSON object"):
        texts("hub:org/set")


def test_unknown_names_are_said(hub: Hub) -> None:
    hub.put("org/set", {"train.jsonl": lines("a")})
    for source, problem in (
        ("hub:org/none", "there is no data set hub:org/none on the hub, or it is private"),
        ("hub:org/set@v2", "hub:org/set has no revision v2"),
        ("hub:org/set:test", "hub:org/set has no split test: name one of train"),
        ("hub:org/set:a:b:c", "is no hub data set: write hub:ORG/NAME"),
        ("hub:", "is no hub data set"),
    ):
        with pytest.raises(DataError, match=problem):
            texts(source)


def test_without_the_hub_the_cache_is_read_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        parts = {f"data/train-0000{part}-of-00002.jsonl": lines(str(part)) for part in (0, 1)}
        commit = hub.put("org/set", parts)
        assert Source.parse("hub:org/set").here() is None
        assert texts("hub:org/set") == ["0", "1"]
    for source in ("hub:org/set", f"hub:org/set@{commit}:train"):
        assert texts(source) == ["0", "1"]
    assert str(Source.parse("hub:org/set#prompt").here()) == f"hub:org/set@{commit}#prompt"
    with pytest.raises(DataError, match="the hub cannot be reached for hub:org/other, and it is not in the cache"):
        texts("hub:org/other")
    # A set of which one file is missing is not taken for a whole one.
    (tmp_path / "cache/datasets--org--set/snapshots" / commit / "data/train-00001-of-00002.jsonl").unlink()
    assert HubSet.parse("hub:org/set").cached() is None
    with pytest.raises(DataError, match=r"train-00001-of-00002\.jsonl of hub:org/set@.* is not in the cache"):
        texts("hub:org/set")


def test_a_cache_that_the_hubs_own_client_filled_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.put("org/set", {"train.jsonl": lines("a")})
        assert texts("hub:org/set") == ["a"]
    folder = tmp_path / "cache" / "datasets--org--set"
    (snapshot,) = (folder / "snapshots").iterdir()
    shutil.rmtree(folder / "charter")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    assert texts("hub:org/set") == ["a"]


def test_bad_rows_of_the_hub_are_skipped_as_others(hub: Hub) -> None:
    hub.put("org/set", {"train.jsonl": lines("a") + b"{}\n"})
    bad = BadRows("skip")
    assert [one.text for one in read_prompts("hub:org/set", bad)] == ["a"]
    assert bad.counts == {"of no known layout": 1}
