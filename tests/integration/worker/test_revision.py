"""Critique and revision in a run, by a judge that is known to be right: it reads a word in the answers."""

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from charter.judge import server as judge
from charter.runs.revisions import RevisionRow, recover_rows
from charter.v1 import run_pb2
from charter.worker.__main__ import FAILED, STOPPED
from prometheus_client import REGISTRY
from safetensors.torch import load_file

from tests.integration.worker.test_endpoint import stored_comparisons
from tests.support.endpoint import MODEL, Answer, Body, Endpoint, Failure, endpoint
from tests.support.harness import running
from tests.support.worker_services import Stage, exit_status, tiny_services, write_jsonl
from tests.support.worker_trainer import listening

# Held-out prompts of the gate.
GATE = 16
CRITIQUE = "The words are cold, and nobody would feel welcome after reading them."


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        # Of five prompts no interval lies above one half.
        held_out = [{"prompt": f"Spell the word number {n}.", "dimension": "harmless"} for n in range(GATE)]
        write_jsonl(stage.folder / "held_out.jsonl", held_out)
        yield stage


class Critic:
    """Writes revisions with one more `gladly` than the answer, and prefers the answer that has more of them."""

    def __init__(self, *, prefers: bool = True, revise: Callable[[int, str], Answer | Failure] | None = None) -> None:
        self.written: Counter[str] = Counter()
        self.critiques_end = "stop"
        self._prefers = prefers
        self._revise = revise

    def __call__(self, body: Body) -> Answer | Failure:
        text = "\n".join(str(message["content"]) for message in body["messages"])
        if "(B)" in text:
            first, _, second = text.partition("(B)")
            better = first.count("gladly") - second.count("gladly") if self._prefers else 0
            p = 0.5 + 0.4 * (better > 0) - 0.4 * (better < 0)
            return Answer("A", {"A": p, "B": 1 - p})
        if "Write only the new response." in text:
            self.written["revision"] += 1
            if self._revise is not None:
                return self._revise(self.written["revision"], text)
            return Answer(self.revision(text))
        if "Say why." in text:
            self.written["critique"] += 1
            return Answer(CRITIQUE, finish=self.critiques_end)
        return Answer("A", {"A": 0.6, "B": 0.4})

    def revision(self, text: str) -> str:
        number = re.findall(r"number (\d+)", text)[0]
        return f"{'gladly ' * (1 + text.count('gladly'))}I say {number} to you, {number} {number} and welcome"


@contextmanager
def judged_by(stage: Stage, served: Endpoint, **revision: object) -> Iterator[run_pb2.RunSpec]:
    constitution = stage.folder / "constitution.yaml"
    config = judge.JudgeConfig(MODEL, constitution, "openai", "choice", None, {"endpoint": served.url})
    with running(judge.build(config)) as addresses:
        spec = stage.spec(
            judge={"model": MODEL, "engine": "openai", "endpoint": served.url, "method": 1, "labelled_pairs": ""},
            # Nothing behind the stage that takes time, but in the test that says so.
            ppo={"steps": 0, "algorithm": "ALGORITHM_ONLINE_DPO"},
            revision={"rounds": 2, "gate_prompts": GATE, **revision},
        )
        spec.services.judge = addresses.main
        yield spec


def writes(body: Body) -> bool:
    """Whether a request asks for a critique or a revision."""
    return any(text in str(body["messages"]) for text in ("Say why.", "Write only the new response."))


def rows_of(stage: Stage, run: str) -> list[RevisionRow]:
    return recover_rows(stage.run_folder(run) / "revision" / "rows.jsonl")


def test_what_the_judge_prefers_is_learned_from_and_every_row_is_kept(stage: Stage) -> None:
    with endpoint(Critic()) as served, judged_by(stage, served) as spec:
        assert stage.work("revised", spec) == 0
    folder = stage.run_folder("revised")
    result = json.loads((folder / "revision.json").read_text())
    assert result["gate"]["low"] > 0.5
    # All that are held out, those of the evaluation too.
    assert (result["gate"]["prompts"], result["gate"]["also_evaluated"]) == (GATE, 4)
    assert "4 of these prompts are also among those of the evaluation" in (folder / "report.html").read_text()
    rows = rows_of(stage, "revised")
    first, second = ({row.prompt_key: row for row in rows if row.round == number} for number in (1, 2))
    assert len(first) == len(second) == 7
    for key, row in second.items():
        # A round goes on from the revision before it, by a principle of its own.
        assert (row.parent, row.answer) == (first[key].id, first[key].revision)
        assert row.revision.count("gladly") == 2
        assert row.critique == CRITIQUE
        assert row.principle in ("kind", "safe")
        assert (row.policy_version, row.judge) == (1, MODEL)
    assert {row.principle for row in rows} == {"kind", "safe"}
    accepted = [json.loads(line) for line in (folder / "revision" / "accepted.jsonl").read_text().splitlines()]
    texts = {one["messages"][-1]["content"] for one in accepted}
    assert texts == {row.revision for row in second.values()}
    table = pq.read_table(folder / "revision" / "rows.parquet").to_pylist()
    assert Counter(row["outcome"] for row in table) == {"superseded": 7, "accepted": 7}
    assert sum(count for count, _ in result["by_principle"].values()) == 14
    pairs = [one for one in stored_comparisons(stage, "revised") if one.method == "revision"]
    assert {one.answer_a.text for one in pairs} == texts
    report = (folder / "report.html").read_text()
    assert "Revising helps." in report
    assert len(result["samples"]) == 2
    # The judge's soft label, never a certain one.
    assert {round(one.probability_a, 6) for one in pairs} == {0.9}


def test_rl_starts_from_what_the_policy_learned_beside_answers_that_help(stage: Stage, tiny_model: Path) -> None:
    learning = {"learning_rate": 1e-2, "batch_size": 2, "epochs": 4, "held_out_fraction": 0}
    file = stage.folder / "helps.jsonl"
    write_jsonl(file, [{"prompt": f"Add one to {n}.", "completion": f"It is {n + 1}."} for n in range(6)])
    options = {"dimensions": ["harmless"], "learning": learning, "helpful": [{"source": str(file)}]}
    with endpoint(Critic()) as served, judged_by(stage, served, **options) as spec:
        spec.ppo.steps, spec.ppo.algorithm, spec.ppo.samples_per_prompt = 1, run_pb2.ALGORITHM_PPO, 1
        # A policy that has learned from so little may say nothing at all.
        spec.failures.max_share = 0.5
        assert stage.work("learned", spec) == 0
    folder = stage.run_folder("learned")
    assert json.loads((folder / "run.json").read_text())["learned"] == ["revised"]
    assert len((folder / "revision" / "accepted.jsonl").read_text().splitlines()) == 3
    sources = json.loads((folder / "revised.json").read_text())["sources"]
    assert {name: round(one["share"], 1) for name, one in sources.items()} == {
        "accepted revisions": 0.5,
        "helps.jsonl": 0.5,
    }
    assert "Learning from revisions" in (folder / "report.html").read_text()
    # The pairs are of the policy that has learned, which is the second to be served.
    pairs = [one for one in stored_comparisons(stage, "learned") if one.method != "revision"]
    assert {one.answer_a.weight_version for one in pairs} == {2}
    assert stage.ppo_steps("learned")[1]["weight_version"] == 3
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(folder / "revised" / "model.safetensors")
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_of_its_own_answers_only_whole_ones_are_learned(stage: Stage) -> None:
    """The tiny model ends no answer: what the token limit ended would teach to stop in the middle."""
    with endpoint(Critic()) as served, judged_by(stage, served, dimensions=["harmless"]) as spec:
        assert stage.work("own", spec) == 0
    folder = stage.run_folder("own")
    answers = [json.loads(line) for line in (folder / "revision" / "helpful_answers.jsonl").read_text().splitlines()]
    assert [one["cut_off"] for batch in answers for (one,) in batch] == [True] * 4
    assert (folder / "revision" / "helpful.jsonl").read_text() == ""
    assert json.loads((folder / "run.json").read_text())["counts"]["helpful_answers_left_out"] == 4
    assert any("4 of 4 answers to other prompts are empty or cut off" in event.text for event in stage.events("own"))
    pairs = [one for one in stored_comparisons(stage, "own") if one.method == "revision"]
    assert {one.answer_b.cut_off for one in pairs} == {True}


@pytest.mark.parametrize(("accept", "outcome", "count"), [("judged_better", "not_better", 0), ("all", "accepted", 7)])
def test_a_revision_that_pleases_nobody_is_learned_from_only_where_all_are(
    stage: Stage, accept: str, outcome: str, count: int
) -> None:
    run = f"equal-{accept}".replace("_", "-")
    with (
        endpoint(Critic(prefers=False)) as served,
        judged_by(stage, served, accept=accept, on_no_gain="continue") as spec,
    ):
        assert stage.work(run, spec) == 0
    result = json.loads((stage.run_folder(run) / "revision.json").read_text())
    assert result["outcomes"] == {outcome: 7}
    assert len((stage.run_folder(run) / "revision" / "accepted.jsonl").read_text().splitlines()) == count
    # What the judge makes of a pair is stored, whatever is learned from.
    assert [one.probability_a for one in stored_comparisons(stage, run) if one.method == "revision"] == [0.5] * 7


def test_without_a_gain_on_held_out_prompts_nothing_is_revised(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    critic = Critic(prefers=False)
    with endpoint(critic) as served, judged_by(stage, served, gate_prompts=GATE - 4) as spec:
        assert stage.work("no-gain", spec) == 0
    folder = stage.run_folder("no-gain")
    assert json.loads((folder / "revision.json").read_text())["skipped"] is True
    assert critic.written == {"critique": GATE - 4, "revision": GATE - 4}
    # Why is told by what became of the revisions.
    report = (folder / "report.html").read_text()
    assert f"Of the revisions for it: {GATE - 4} clean." in report
    assert "All are in revision/gate_rows.jsonl" in report
    # There are enough others: the evaluation's prompts are left alone.
    asked = {row.prompt[-1].content for row in recover_rows(folder / "revision" / "gate_rows.jsonl")}
    evaluated = {row["prompt"] for row in json.loads((folder / "evaluation.json").read_text())["rows"]}
    assert (len(asked), len(evaluated), asked & evaluated) == (GATE - 4, 4, set())
    assert any("does not help beyond chance; the stage is skipped" in event.text for event in stage.events("no-gain"))
    with endpoint(critic) as served, judged_by(stage, served, on_no_gain="stop") as spec:
        assert stage.work("stopped", spec) == FAILED
    assert "revising does not help beyond chance" in caplog.messages[-1]


def test_dirty_revisions_are_named_and_what_came_before_them_goes_on(stage: Stage) -> None:
    critic = Critic()

    def every_second_leaks(number: int, text: str) -> Answer:
        leaks = number > GATE and "number 2" in text
        return Answer("Here is a revised response: hello" if leaks else critic.revision(text))

    critic._revise, critic.critiques_end = every_second_leaks, "length"
    with endpoint(critic) as served, judged_by(stage, served, critique_tokens=30) as spec:
        assert stage.work("dirty", spec) == 0
    limits = {"Write only" in str(body["messages"]): body["max_tokens"] for body in served.requests if writes(body)}
    assert limits == {False: 30, True: spec.sampling.max_new_tokens}
    leaked = [row for row in rows_of(stage, "dirty") if row.verdict == "scaffolding"]
    assert [row.round for row in leaked] == [1, 2]
    # The second round revised the answer again, not the leak.
    assert len({row.answer for row in leaked}) == 1
    assert [row.parent for row in leaked] == ["", ""]
    result = json.loads((stage.run_folder("dirty") / "revision.json").read_text())
    assert [one["verdicts"] for one in result["rounds"]] == [{"clean": 6, "scaffolding": 1}] * 2
    # A critique that the limit ended is followed, and counted.
    assert [one["critiques_cut_off"] for one in result["rounds"]] == [7, 7]
    accepted = (stage.run_folder("dirty") / "revision" / "accepted.jsonl").read_text()
    assert "revised response" not in accepted


def test_a_run_that_was_broken_off_repeats_nothing(stage: Stage) -> None:
    critic = Critic()

    def down_in_the_second_round(number: int, text: str) -> Answer | Failure:
        return Failure(401, "no longer valid") if number > GATE + 7 else Answer(critic.revision(text))

    critic._revise = down_in_the_second_round
    with endpoint(critic) as served, judged_by(stage, served) as spec:
        assert stage.work("broken-off", spec) != 0
        before = rows_of(stage, "broken-off")
        critic._revise = None
        critic.written.clear()
        assert stage.work("broken-off", spec, attempt=2) == 0
    assert len(before) == 7
    after = rows_of(stage, "broken-off")
    assert after[:7] == before
    assert Counter(row.round for row in after) == {1: 7, 2: 7}
    assert critic.written["revision"] == 7


def sent_to_policy() -> float:
    """Bytes of weights that the policy service has got."""
    return REGISTRY.get_sample_value("charter_weight_received_bytes_total", {"service": "policy"}) or 0.0


class Seeded(Critic):
    """Writes texts that depend on the seed that it is asked with."""

    def __call__(self, body: Body) -> Answer | Failure:
        found = super().__call__(body)
        if writes(body) and isinstance(found, Answer):
            return Answer(f"{found.text} {body['seed'] % 1000}")
        return found


# What is broken off, where the worker kills itself, at which call, and how much of the rows is left of a half write.
INSTANTS: list[tuple[str, str, int, int]] = [
    ("the gate's revisions are written, not stored", "charter.worker.revision.rounds:append_rows", 1, 0),
    ("the first round is half stored", "charter.worker.revision.rounds:append_rows", 4, 3),
    ("the second round is half stored", "charter.worker.revision.rounds:append_rows", 4, 9),
    ("compared and stored, not noted", "charter.worker.revision.acceptance:append_line", 1, 0),
]


@pytest.mark.timeout(600)
def test_killed_within_a_round_it_ends_like_one_that_was_not(stage: Stage) -> None:
    with endpoint(Seeded()) as served, judged_by(stage, served) as spec:
        assert stage.work("whole", spec) == 0
        for what, place, times, rows in INSTANTS:
            sent = sent_to_policy()
            with stage.process("killed", spec, "", (place, times)) as worker:
                assert exit_status(worker, 300) == -signal.SIGKILL, what
            if rows:
                file = stage.run_folder("killed") / "revision" / "rows.jsonl"
                lines = file.read_bytes().splitlines(keepends=True)
                assert len(lines) > rows
                file.write_bytes(b"".join([*lines[:rows], lines[rows][:40]]))
        # All answers were there: no weights were sent for them again.
        assert sent_to_policy() == sent
        assert stage.work("killed", spec, attempt=len(INSTANTS) + 1) == 0
    whole, killed = stage.run_folder("whole"), stage.run_folder("killed")
    for name in ("revision.json", "revision/rows.jsonl", "revision/gate_rows.jsonl", "revision/accepted.jsonl"):
        assert sorted((killed / name).read_bytes().splitlines()) == sorted((whole / name).read_bytes().splitlines()), (
            name
        )
    pairs = [
        {one.answer_a.text for one in stored_comparisons(stage, run) if one.method == "revision"}
        for run in ("whole", "killed")
    ]
    assert pairs[0] == pairs[1]
    before_rl, after = (load_file(folder / "revised" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before_rl.items())


def test_the_gate_can_be_cancelled(stage: Stage) -> None:
    critic = Critic()
    with (
        endpoint(critic) as served,
        judged_by(stage, served) as spec,
        listening(lambda event: event.text == "held-out answers to revise") as (address, _),
    ):
        assert stage.work("cancelled", spec, trainer=address) == STOPPED
    assert critic.written == {}
