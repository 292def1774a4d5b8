"""Every number of a card, computed again from the files of the run; and that there is no other number in it."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
from charter.evaluation.card.files import card_texts
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.markdown import markdown
from charter.evaluation.card.twin import FILE, Twin, schema
from charter.runs.folder import read_run_folder
from charter.runs.results import Figure, HeldOutLoss, Learned, LearnedSource, LeftOut, write_result
from charter.spec.load import SpecFile
from charter.v1 import run_pb2

from tests.support.report_fixture import write_run_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was also fine-tuned and learned from comparisons."""
    folder = write_run_folder(tmp_path_factory.mktemp("card") / "run")
    spec = json.loads((folder / "spec.json").read_text())
    spec["supervised"] = {"data": [{"source": "/data/talks.jsonl"}]}
    spec["dpo"] = {"data": [{"source": "/data/pairs.jsonl"}]}
    (folder / "spec.json").write_text(json.dumps(spec))
    write_result(folder, "supervised", _learned({}, LearnedSource(31, 7, 911, 1.0, LeftOut(40, {"too long": 2}))))
    labels = {"AI": 13, "HUMAN": 24}
    source = LearnedSource(29, 8, 402, 1.0, LeftOut(39, {"tie": 1, "identical": 1}), digest="a" * 64, labels=labels)
    write_result(folder, "dpo", _learned({"reward_accuracy": Figure(0.71, 0.61, 0.79)}, source))
    (folder / "policy").mkdir()
    (folder / "policy" / "model.safetensors").write_bytes(b"weights" * 99)
    return folder


def _learned(figures: dict[str, Figure], source: LearnedSource) -> Learned:
    before = {name: Figure(0.5, 0.4, 0.6) for name in figures}
    return Learned(
        model="m",
        sources={"/data/somewhere/rows.jsonl": source},
        steps=9,
        done=6,
        kept_step=5,
        sample_beginning="",
        measured=(HeldOutLoss(0, 2.611, {}, "", before), HeldOutLoss(5, 2.443, {}, "", figures)),
    )


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def interval(found: dict[str, Any], name: str) -> str:
    return f"{percent(found[name])} ({percent(found[f'{name}_low'])} to {percent(found[f'{name}_high'])})"


def expected(folder: Path) -> list[str]:
    """The lines of the card that hold numbers, from the files."""
    evaluation, judge, fit = read(folder, "evaluation"), read(folder, "judge_check"), read(folder, "preference_fit")
    info, spec = read(folder, "run"), read(folder, "spec")
    calibration, held_out = judge["calibration"], fit["held_out"]
    model = spec["judge"]["model"]
    failed = sum(evaluation["failures"].values())
    outcomes = f"{evaluation['wins']}, {evaluation['ties']}, {evaluation['losses']}, {failed}"
    of_judged = evaluation["wins"] + evaluation["ties"] + evaluation["losses"]
    rate_interval = f"{percent(evaluation['win_rate_low'])} to {percent(evaluation['win_rate_high'])}"
    sure = sum(one["count"] * one["mean_predicted"] for one in held_out["bins"]) / held_out["pairs"]
    lines = [
        f"{percent(evaluation['win_rate'])} of {of_judged} held-out prompts (95% interval {rate_interval}).",
        f"On {held_out['pairs']} held-out pairs it agrees with {percent(held_out['accuracy'])} of them "
        f"({percent(held_out['accuracy_low'])} to {percent(held_out['accuracy_high'])}), and is {percent(sure)} sure "
        "on average, where 50% is a coin.",
        f"| this run | {model} | all | start | {interval(evaluation, 'win_rate')} | {outcomes} |",
        f"Mean tokens of an answer: {evaluation['mean_tokens_before']:.0f} → {evaluation['mean_tokens_after']:.0f}.",
        f"principles averaged for each judgement: {spec['judge']['ensemble_size']} |",
        f"| {interval(calibration, 'accuracy')} of {calibration['pairs']} labelled pairs, "
        f"{sum(judge['failures'].values()) + judge['left_out']} more left out |",
        f"| {percent(judge['shorter_is_better_accuracy'])} |",
        f"| {interval(held_out, 'accuracy')} of {held_out['pairs']} held-out comparisons |",
        f"sha256 `{info['constitution_digest']}`",
        "Not fitted: 3 invalid, 2 unavailable.",
        f"Prompts held out: {info['counts']['prompts_held_out']}.",
        f"answers of up to {spec['sampling']['max_new_tokens']} tokens",
        _algorithm(folder, spec),
    ]
    assert fit["left_out"] == {"INVALID": 3, "UNAVAILABLE": 2}
    for stage, unit in (("supervised", "nats per token"), ("dpo", "nats per comparison")):
        found = read(folder, stage)
        first, kept = found["measured"]
        lines.append(f"| {stage} | held-out loss, {unit} | {first['loss']:.3f} → {kept['loss']:.3f} |")
        for one in kept["figures"].values():
            before = first["figures"]["reward_accuracy"]["mean"]
            spread = f"({percent(one['low'])} to {percent(one['high'])})"
            lines.append(f"| {percent(before)} → {percent(one['mean'])} {spread} |")
        for one in found["sources"].values():
            left_out = ", ".join(f"{count} {kind}" for kind, count in one["left_out"]["kinds"].items())
            counts = f"{one['train']} | {one['held_out']} | {left_out} | {one['tokens']} | {percent(one['share'])}"
            labels = {"AI": "the judge", "HUMAN": "people"}
            said = ", ".join(f"{count} of {labels[name]}" for name, count in one["labels"].items())
            lines.append(f"| {stage} | rows.jsonl | {counts} | {said} |")
            lines.append(f"`{one['digest']}`" if one["digest"] else "")
    for part in fit["mix"]:
        label = {"AI": "labels of the judge", "HUMAN": "labels of people"}[part["source"]]
        counts = f"{part['train_pairs']} | {part['held_out_pairs']} | {percent(part['share'])}"
        lines.append(f"| {label} | {part['dimension']} | {counts} |")
    rows = pq.read_table(folder / "comparisons.parquet").to_pylist()
    for (dimension, outcome), count in Counter((row["dimension"], row["outcome"]) for row in rows).items():
        lines.append(f"| the judge | {dimension} | {outcome.replace('_', ' ').lower()} | {count} |")
    for name, one in info["prompt_sources"].items():
        dimensions = ", ".join(f"{count} {dimension}" for dimension, count in one["dimensions"].items())
        lines.append(f"| {name} | {one['prompts']} | {percent(one['share'])} | {dimensions} |")
    for where, one in info["left_out"].items():
        kinds = ", ".join(f"{count} {kind.replace('_', ' ').lower()}" for kind, count in one["kinds"].items())
        lines.append(f"- {where}: {kinds} of {one['items']}")
    weights = (folder / "policy" / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    lines.append(f"| this model, model.safetensors | {len(weights)} bytes | `{digest}` |")
    return [*lines, *_dimensions(folder, model), *_times(info), *_inputs(info)]


def _algorithm(folder: Path, spec: dict[str, Any]) -> str:
    steps = [json.loads(line).get("step", 0) for line in (folder / "events.jsonl").read_text().splitlines()]
    ppo = spec["ppo"]
    return (
        f"PPO: {max(steps)} of {ppo['steps']} steps of {ppo['episodes_per_step']} answers, {ppo['samples_per_prompt']} "
        f"to each prompt; reward: preference model × {spec['reward']['preference_weight']:g}; KL coefficient in the "
        f"reward {ppo['kl_coefficient']:g}."
    )


def _dimensions(folder: Path, model: str) -> list[str]:
    """Counts of the run's own comparison by dimension; the intervals are those of the report."""
    lines = []
    rows = read(folder, "evaluation")["rows"]
    for dimension in dict.fromkeys(row["dimension"] for row in rows):
        given = [row["probability_after"] for row in rows if row["dimension"] == dimension]
        judged = [one for one in given if one is not None]
        wins, ties = sum(one > 0.5 for one in judged), sum(one == 0.5 for one in judged)
        losses, failed = len(judged) - wins - ties, len(given) - len(judged)
        rate = percent((wins + ties / 2) / len(judged))
        spread = r"\([\d.]+% to [\d.]+%\)"
        start = re.escape(f"| this run | {model} | {dimension} | start | {rate} ")
        lines.append(rf"re:{start}{spread} \| {wins}, {ties}, {losses}, {failed} \|")
    return lines


def _times(info: dict[str, Any]) -> list[str]:
    lines = []
    for name, seconds in info["phase_seconds"].items():
        first, second = (leg["phase_seconds"].get(name, 0.0) / 3600 for leg in info["legs"])
        hours = f"{first * 6:.4f} | {second * 2:.4f} | {first * 1.5 + second * 3.0:.4f}"
        words = "reinforcement learning" if name == "PPO" else name.replace("_", " ").lower()
        lines.append(f"| {words} | {seconds:.1f} | {hours} |")
    for leg in info["legs"]:
        machine = leg["hardware"]
        gpus = f", {machine['gpus']} × {machine['gpu']}" if "gpus" in machine else ""
        versions = ", ".join(f"{name} {version}" for name, version in leg["versions"].items())
        lines.append(
            f"- attempt {leg['attempt']}: {machine['system']}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_bytes'] / 2**30:.1f} GiB{gpus}; {versions}"
        )
    return lines


def _inputs(info: dict[str, Any]) -> list[str]:
    first, second = (leg["inputs"] for leg in info["legs"])
    train, held_out, model = "prompts.train[0]", "prompts.held_out[0]", "policy.model"
    both = f"`{first[train]['sha256']}`, `{second[train]['sha256']}` (it changed between attempts)"
    return [
        f"| {train} | train.jsonl | {both} |",
        f"| {held_out} | held_out.jsonl | `{first[held_out]['sha256']}` |",
        f"| {model} | {first[model]['name']} at `{first[model]['revision']}` | `{first[model]['sha256']}` |",
    ]


def test_every_number_is_that_of_the_files_and_there_is_no_other(folder: Path) -> None:
    _, _, text = markdown(twin_of(read_run_folder(folder))).partition("\n---\n")
    for line in expected(folder):
        pattern = line.removeprefix("re:") if line.startswith("re:") else re.escape(line)
        text, found = re.subn(pattern, "", text, count=1)
        assert found == 1, f"not in the card: {line}"
    # What is no number of the run: code, the spec that makes it again, names and texts of the constitution.
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for known in (
        "SmolLM2-135M",
        "sha256",
        "version 3",
        "95% interval",
        "where 50% is a coin",
        "The interval includes 50%",
    ):
        text = text.replace(known, "")
    assert re.findall(r".*\d.*", text) == []


def test_a_number_of_a_file_that_changes_changes_in_the_card(folder: Path, tmp_path: Path) -> None:
    evaluation = read(folder, "evaluation") | {"win_rate": 0.123, "wins": 4321}
    before = markdown(twin_of(read_run_folder(folder)))
    kept = (folder / "evaluation.json").read_text()
    try:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        after = markdown(twin_of(read_run_folder(folder)))
    finally:
        (folder / "evaluation.json").write_text(kept)
    assert "12.3%" in after
    assert "12.3%" not in before
    assert "| 4321, " in after


def test_the_twin_is_read_back_whole_and_fits_its_schema(folder: Path) -> None:
    run = read_run_folder(folder)
    twin = twin_of(run)
    text = card_texts(run, twin)[FILE]
    assert Twin.from_json(text) == twin
    jsonschema.validate(json.loads(text), schema())
    # The card is written from it alone.
    assert markdown(Twin.from_json(text)) == card_texts(run, twin)["README.md"]


def test_the_spec_beside_the_card_is_one_that_charter_reads(folder: Path, tmp_path: Path) -> None:
    run = read_run_folder(folder)
    for name, text in card_texts(run, twin_of(run)).items():
        (tmp_path / name).write_text(text)
    for name in ("train.jsonl", "held_out.jsonl", "labelled_pairs.jsonl", "talks.jsonl", "pairs.jsonl"):
        (tmp_path / name).touch()
    file = SpecFile(tmp_path / "spec.yaml")
    assert file.problems == []
    assert file.spec.seed == 17
    assert file.spec.ppo.algorithm == run_pb2.ALGORITHM_PPO
    assert file.spec.judge.constitution == str(tmp_path / "constitution.yaml")
