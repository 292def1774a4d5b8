"""Sets of prompts, seeds, and the files of a run folder."""

import json
from collections import Counter
from pathlib import Path

import pytest
from charter.data.prompts import read_prompts
from charter.inference.chat_template import ChatTokenizer
from charter.jsonl import append_line, recover_lines
from charter.runs.artifacts import Artifacts
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.errors import SpecError
from charter.worker.prompts import PromptSets, load_prompt_sets, take
from charter.worker.seeds import derive_seed, stable_fraction
from charter.worker.stages.start import check_template, load_prompts


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(tiny_model))


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prompt_spec(train: list[str], held_out: list[str], most: int = 100, **more: list[float]) -> run_pb2.PromptSpec:
    return run_pb2.PromptSpec(train=train, held_out=held_out, max_prompt_tokens=most, **more)


def test_overlap_is_an_error_whatever_the_white_space(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "One"}, {"prompt": "Two"})
    held_out = write(tmp_path / "held.jsonl", {"messages": [{"role": "user", "content": " Two\n"}]})
    with pytest.raises(SpecError, match=r"1 held-out prompts are also in prompts\.train, for example 'T…'"):
        load_prompt_sets(prompt_spec([train], [held_out]), tokenizer)


def test_long_and_repeated_prompts_are_left_out(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "One"}, {"prompt": "One"}, {"prompt": "x" * 60})
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Two"})
    sets = load_prompt_sets(prompt_spec([train], [held_out], 40), tokenizer)
    assert [prompt.text for prompt in sets.train] == ["One"]
    assert sets.too_long == 1
    with pytest.raises(SpecError, match=r"every prompt of prompts\.train has more than max_prompt_tokens=4 tokens"):
        load_prompt_sets(prompt_spec([train], [held_out], 4), tokenizer)


def test_bad_rows_are_skipped_counted_and_kept_in_the_folder_of_the_run(tmp_path: Path, tiny_model: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "One"}, {"promt": "Two"}, 7)
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Three"}, {"prompt": ""})
    prompts = run_pb2.PromptSpec(train=[train], held_out=[held_out])
    spec = fill_defaults(run_pb2.RunSpec(name="r", policy=run_pb2.PolicySpec(model=str(tiny_model)), prompts=prompts))
    artifacts = Artifacts(tmp_path / "run", "r")
    with pytest.raises(SpecError, match=r"train\.jsonl, line 2: .* it has promt"):
        load_prompts(spec, artifacts, check_template(spec))
    spec.failures.on_bad_row = run_pb2.ON_BAD_ROW_SKIP
    assert [prompt.text for prompt in load_prompts(spec, artifacts, check_template(spec)).train] == ["One"]
    lines = [json.loads(line) for line in (tmp_path / "run/left_out/prompts.jsonl").read_text().splitlines()]
    assert [(Path(line["file"]).name, line["place"]) for line in lines] == [
        ("train.jsonl", "line 2"),
        ("train.jsonl", "line 3"),
        ("held.jsonl", "line 2"),
    ]
    assert json.loads((tmp_path / "run/run.json").read_text())["counts"]["prompt_rows_left_out"] == 3


def test_the_stream_of_prompts_takes_each_once_a_pass(tmp_path: Path) -> None:
    prompts = read_prompts(Path(write(tmp_path / "p.jsonl", *({"prompt": str(n)} for n in range(5)))))
    stream = [prompt.text for prompt in take(prompts, 0, 15, seed=3)]
    passes = [stream[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(one) == ["0", "1", "2", "3", "4"] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    # Wherever it is taken up again, it goes on the same way.
    assert [prompt.text for prompt in take(prompts, 7, 6, seed=3)] == stream[7:13]
    assert [prompt.text for prompt in take(prompts, 0, 15, seed=4)] != stream


def of_sources(
    tmp_path: Path, tokenizer: ChatTokenizer, weights: list[float], sizes: dict[str, int], most: int = 100
) -> PromptSets:
    """Prompts of sources that each begin with the source's name."""
    train = [
        write(tmp_path / f"{name}.jsonl", *({"prompt": f"{name}{number}", "dimension": name} for number in range(size)))
        for name, size in sizes.items()
    ]
    held_out = write(tmp_path / "held.jsonl", {"prompt": "held out"})
    return load_prompt_sets(prompt_spec(train, [held_out], most, train_weights=weights), tokenizer)


def test_prompts_of_sources_are_taken_by_their_weights(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    sets = of_sources(tmp_path, tokenizer, [3, 1, 1], {"a": 4, "b": 40, "c": 2})
    assert sets.shares() == pytest.approx({"a.jsonl": 0.6, "b.jsonl": 0.2, "c.jsonl": 0.2})
    stream = [prompt.text for prompt in sets.take(sets.train, 0, 600, seed=3)]
    taken = Counter(text[0] for text in stream)
    assert {name: taken[name] / 600 for name in "abc"} == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2}, abs=0.01)
    # Each prompt of a source as often as the others of it.
    for name, size in (("a", 4), ("b", 40), ("c", 2)):
        counted = Counter(text for text in stream if text[0] == name)
        assert len(counted) == size
        assert max(counted.values()) - min(counted.values()) <= 1
    # Wherever it is taken up again, it goes on the same way, and in whatever parts.
    for cursor, count in ((7, 6), (0, 1), (133, 60), (599, 1)):
        assert [one.text for one in sets.take(sets.train, cursor, count, seed=3)] == stream[cursor : cursor + count]
    assert [one.text for one in sets.take(sets.train, 0, 600, seed=4)] != stream
    # Those of some dimensions keep the weights of their sources.
    some = [one for one in sets.train if one.dimension in "ac"]
    taken = Counter(one.text[0] for one in sets.take(some, 0, 400, seed=3))
    assert taken["a"] / 400 == pytest.approx(0.75, abs=0.01)
    assert taken["b"] == 0


def test_without_weights_prompts_are_taken_as_ever(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    sets = of_sources(tmp_path, tokenizer, [], {"a": 4, "b": 2})
    assert sets.take(sets.train, 3, 20, seed=5) == take(sets.train, 3, 20, seed=5)
    assert sets.shares() == pytest.approx({"a.jsonl": 4 / 6, "b.jsonl": 2 / 6})


def test_a_source_with_a_weight_must_have_prompts_of_its_own(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    one = write(tmp_path / "a.jsonl", {"prompt": "One"})
    (tmp_path / "more").mkdir()
    same = write(tmp_path / "more" / "a.jsonl", {"prompt": "One"})
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Two"})
    with pytest.raises(SpecError, match=r"prompts\.train: a\.jsonl \(2\) has a weight, and nothing is left of it"):
        load_prompt_sets(prompt_spec([one, same], [held_out], train_weights=[1, 1]), tokenizer)


def test_where_the_files_lie_changes_nothing_that_is_drawn(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    streams = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        sets = of_sources(tmp_path / name, tokenizer, [2, 1], {"a": 5, "b": 5})
        streams.append([one.text for one in sets.take(sets.train, 0, 40, seed=1)])
    assert streams[0] == streams[1]


def test_seeds_differ_by_use_and_never_by_process() -> None:
    seeds = [
        derive_seed(1, "pairs", 0),
        derive_seed(1, "pairs", 1),
        derive_seed(2, "pairs", 0),
        derive_seed(1, "pairs"),
    ]
    assert len(set(seeds)) == 4
    # Written down once: a change of it would break every run that is resumed.
    assert derive_seed(1, "pairs", 0) == 4050333518115902862
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.0 <= stable_fraction("held out", "a") < 1.0


def test_text_and_number_are_different_parts() -> None:
    assert derive_seed(1, "a", 1) != derive_seed(1, "a", "1")


def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, '{"a": 1}')
    with path.open("a") as file:
        file.write('{"b": ')
    assert recover_lines(path) == ['{"a": 1}']
    append_line(path, '{"c": 3}')
    assert recover_lines(path) == ['{"a": 1}', '{"c": 3}']


def test_an_attempt_is_noted_and_those_before_it_stay(tmp_path: Path) -> None:
    for attempt, seconds in ((1, 1.5), (2, 2.0)):
        artifacts = Artifacts(tmp_path, "r")
        artifacts.begin_leg(attempt, hardware={"cores": attempt})
        artifacts.note_in_leg(versions={"charter": str(attempt)})
        artifacts.add_seconds("PPO", seconds)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["phase_seconds"] == {"PPO": 3.5}
    first, second = record["legs"]
    assert (first["attempt"], first["phase_seconds"], first["versions"]) == (1, {"PPO": 1.5}, {"charter": "1"})
    assert (second["hardware"], second["phase_seconds"]) == ({"cores": 2}, {"PPO": 2.0})
    assert first["started"] <= first["ended"] <= second["started"] <= second["ended"]


def test_times_of_attempts_add_up(tmp_path: Path) -> None:
    Artifacts(tmp_path, "r").add_seconds("PPO", 1.5)
    again = Artifacts(tmp_path, "r")
    again.add_seconds("PPO", 2.0)
    again.count(prompts_train=4)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["phase_seconds"] == {"PPO": 3.5}
    assert record["counts"] == {"prompts_train": 4}
    assert record["id"] == "r"
