"""Which pairs of files a study takes, and what is said of wrong ones before anything is asked."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from charter.held_out import prompt_key
from charter.rpc.messages import chat_messages
from charter.spec.defaults import fill_defaults as fill_run
from charter.study.folder import StudyFolder
from charter.study.pairs import choose_pairs, evaluated_prompts, pair_findings, read_pairs, stored_pairs, write_pairs
from charter.study.spec import StudySpec, fill_defaults
from charter.v1 import run_pb2, types_pb2
from google.protobuf import json_format


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(number: int, dimension: str, label: float | None = 1.0, **more: str) -> dict[str, Any]:
    return {
        "prompt": f"Ask {number} {dimension}?",
        "answer_a": f"Yes {number}.",
        "answer_b": "No.",
        "dimension": dimension,
        **({"label": label} if label is not None else {}),
        **more,
    }


@pytest.fixture
def base(tmp_path: Path) -> run_pb2.RunSpec:
    """Of which one held-out prompt is among the pairs."""
    held_out = write(tmp_path / "held_out.jsonl", [{"prompt": "Ask 0 helpful?"}, {"prompt": "Never asked?"}])
    train = write(tmp_path / "train.jsonl", [{"prompt": f"Do {n}.", "dimension": "helpful"} for n in range(3)])
    prompts = run_pb2.PromptSpec(train=[train], held_out=[held_out])
    return fill_run(run_pb2.RunSpec(name="base", prompts=prompts))


def study(base: run_pb2.RunSpec, folder: Path, pairs: dict[str, Any], **more: Any) -> StudySpec:
    evaluated = write(folder / "evaluated.jsonl", [{"prompt": "Ask 1 helpful?"}])
    values = {
        "name": "ours",
        "seed": 7,
        "pairs": pairs,
        "judges": [{"name": "judge", "address": "127.0.0.1:1"}],
        "arms": [{"name": "rlhf", "labels": "imported"}, {"name": "rlaif", "labels": "judge"}],
        "evaluation": {"prompts": [{"source": evaluated}]},
        **more,
    }
    return fill_defaults(json_format.ParseDict(values, StudySpec()), base)


def rows() -> list[dict[str, Any]]:
    """Twelve helpful pairs, of which two are evaluated, four harmless ones, and three that nobody can learn from."""
    helpful = [row(number, "helpful", number % 2) for number in range(12)]
    odd = [row(20, "helpful", None), row(21, "helpful") | {"answer_a": "No."}, dict(helpful[5])]
    return [*helpful, *odd, *(row(number, "harmless") for number in range(4))]


def ids(spec: StudySpec, base: run_pb2.RunSpec) -> list[str]:
    return [one.id for one in choose_pairs(spec, base, evaluated_prompts(spec, base)).pairs]


def test_as_many_of_each_dimension_as_can_be_and_each_once(base: run_pb2.RunSpec, tmp_path: Path) -> None:
    base.failures.on_bad_row = run_pb2.ON_BAD_ROW_SKIP
    source = write(tmp_path / "human.jsonl", rows())
    spec = study(base, tmp_path, {"sources": [source], "count": 10})
    found = choose_pairs(spec, base, evaluated_prompts(spec, base))
    assert Counter(one.dimension for one in found.pairs) == {"helpful": 6, "harmless": 4}
    assert sum(found.left_out.values()) == 2 + 3
    assert found.left_out["of an evaluated prompt"] == 2
    assert found.left_out["with identical answers"] == found.left_out["repeated"] == 1
    asked = {prompt_key(chat_messages(one.prompt)) for one in found.pairs}
    assert not asked & evaluated_prompts(spec, base)
    assert {one.source for one in found.pairs} == {types_pb2.LABEL_SOURCE_IMPORTED}
    assert {one.labeller for one in found.pairs} == {"human.jsonl"}


def test_fewer_are_the_beginning_of_more_and_another_seed_draws_others(base: run_pb2.RunSpec, tmp_path: Path) -> None:
    source = write(tmp_path / "human.jsonl", [row(n, d) for n in range(30) for d in ("helpful", "harmless")])
    every = ids(study(base, tmp_path, {"sources": [source]}), base)
    few = ids(study(base, tmp_path, {"sources": [source], "count": 9}), base)
    assert (len(every), few) == (58, every[:9])
    assert set(ids(study(base, tmp_path, {"sources": [source], "count": 9}, seed=8), base)) != set(few)
    # Nothing depends on where the rows stand.
    turned = write(tmp_path / "human.jsonl", [row(n, d) for d in ("harmless", "helpful") for n in range(29, -1, -1)])
    assert ids(study(base, tmp_path, {"sources": [turned]}), base) == every


def test_pairs_are_written_and_read_back_as_they_were(base: run_pb2.RunSpec, tmp_path: Path) -> None:
    source = write(
        tmp_path / "human.jsonl", [row(n, "helpful", split="HELD_OUT" if n == 3 else "TRAIN") for n in range(6)]
    )
    spec = study(base, tmp_path, {"sources": [source]})
    chosen = choose_pairs(spec, base, evaluated_prompts(spec, base)).pairs
    folder = StudyFolder(tmp_path)
    write_pairs(folder, chosen)
    assert read_pairs(folder) == chosen
    assert stored_pairs(spec, folder) == chosen


SOURCE = {"sources": ["human.jsonl"]}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (SOURCE, []),
        ({"sampled": 8}, []),
        ({}, ["pairs: needs sources, or how many are sampled"]),
        (SOURCE | {"sampled": 8}, ["pairs: has sources and sampled: leave one out"]),
        ({"sampled": 8, "count": 4}, ["pairs.count: is about sources, and these pairs are sampled"]),
        ({"sampled": 8, "dimension": "x"}, ["pairs.dimension: is about sources, and these pairs are sampled"]),
        ({"sources": ["human.jsonl"] * 2}, ["pairs.sources[1]: is named twice"]),
        (
            SOURCE | {"count": 90},
            ["pairs.count: is 90, and the sources hold 10 that can be compared (left out: 2 of an"],
        ),
        (
            {"sources": ["one.jsonl"]},
            ["pairs.sources: hold 1 pairs that can be compared, and a fit needs pairs of two"],
        ),
        ({"sources": ["broken.jsonl"]}, ["pairs.sources: "]),
        ({"sources": ["nolabel.jsonl"]}, ["pairs.sources: "]),
        ({"sources": ["hub:nobody/nothing"]}, []),
    ],
)
def test_what_is_wrong_with_pairs_is_said_before_anything_is_asked(
    base: run_pb2.RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "human.jsonl", [row(number, "helpful") for number in range(12)])
    write(tmp_path / "one.jsonl", [row(5, "helpful")])
    write(tmp_path / "nolabel.jsonl", [row(number, "helpful", None) for number in range(9)])
    (tmp_path / "broken.jsonl").write_text('{"prompt": "p"}\n')
    problems, unread = pair_findings(study(base, tmp_path, pairs), base)
    assert len(problems) == len(expected), problems
    for problem, beginning in zip(problems, expected, strict=True):
        assert str(problem).startswith(beginning)
    assert len(unread) == any("hub:" in source for source in pairs.get("sources", ()))


def test_every_dimension_must_be_somebodys(base: run_pb2.RunSpec, tmp_path: Path) -> None:
    source = write(tmp_path / "human.jsonl", [row(n, d) for n in range(5) for d in ("helpful", "harmless", "")])
    mixed = {"helpful": "imported", "harmles": "judge"}
    spec = study(base, tmp_path, {"sources": [source]}, arms=[{"name": "mixed", "labels_by_dimension": mixed}])
    problems, _ = pair_findings(spec, base)
    assert [str(one).partition(":")[0] for one in problems] == [
        "arms[0].labels_by_dimension.harmles",
        "arms[0].labels_by_dimension",
    ]
    assert "no pair is of this dimension; they have harmless and helpful" in str(problems[0])
    assert "says nothing of pairs of no dimension and harmless" in str(problems[1])
    whole = study(base, tmp_path, {"sampled": 8}, arms=[{"name": "mixed", "labels_by_dimension": {"helpful": "judge"}}])
    assert pair_findings(whole, base) == ([], [])
