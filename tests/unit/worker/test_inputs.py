"""Sets of prompts, seeds, and the files of a run folder."""

import json
from pathlib import Path

import pytest
from charter.data.prompts import read_prompts
from charter.inference.chat_template import ChatTokenizer
from charter.jsonl import append_line, recover_lines
from charter.runs.artifacts import Artifacts
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.errors import SpecError
from charter.worker.prompts import load_prompt_sets, take
from charter.worker.seeds import derive_seed, stable_fraction
from charter.worker.stages.start import check_template, load_prompts


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(tiny_model))


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_overlap_is_an_error_whatever_the_white_space(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "One"}, {"prompt": "Two"})
    held_out = write(tmp_path / "held.jsonl", {"messages": [{"role": "user", "content": " Two\n"}]})
    with pytest.raises(SpecError, match=r"1 held-out prompts are also in prompts\.train, for example 'Two'"):
        load_prompt_sets([train], [held_out], tokenizer, 100)


def test_long_and_repeated_prompts_are_left_out(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "One"}, {"prompt": "One"}, {"prompt": "x" * 60})
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Two"})
    sets = load_prompt_sets([train], [held_out], tokenizer, 40)
    assert [prompt.text for prompt in sets.train] == ["One"]
    assert sets.too_long == 1
    with pytest.raises(SpecError, match=r"every prompt of prompts\.train has more than max_prompt_tokens=4 tokens"):
        load_prompt_sets([train], [held_out], tokenizer, 4)


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


def test_times_of_attempts_add_up(tmp_path: Path) -> None:
    Artifacts(tmp_path, "r").add_seconds("PPO", 1.5)
    again = Artifacts(tmp_path, "r")
    again.add_seconds("PPO", 2.0)
    again.count(prompts_train=4)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["phase_seconds"] == {"PPO": 3.5}
    assert record["counts"] == {"prompts_train": 4}
    assert record["id"] == "r"
