"""The labels of a study: a judge, a scorer, files and people on the same pairs, killed, continued, and in the store."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from charter.evaluation.figures.agreement import cohen_kappa
from charter.feedback.labellers import Labellers
from charter.feedback.room import FeedbackConfig
from charter.policy import server as policy
from charter.preference import server as preference
from charter.rpc.channel import QUICK, connect
from charter.spec.defaults import fill_defaults as fill_run
from charter.study.folder import StudyFolder
from charter.study.label_log import labelled
from charter.study.labels import StudyLabels, read_labelled
from charter.study.spec import CheckedStudy, StudySpec, fill_defaults
from charter.v1 import evaluation_pb2, preference_pb2, preference_pb2_grpc, run_pb2, types_pb2
from charter.worker.errors import RunError, TooManyFailuresError
from charter.worker.study.labelling import WaitingForPeopleError, label_pairs
from google.protobuf import json_format

from tests.integration.feedback.test_evaluation import NOBODY, people
from tests.support.endpoint import Answer, Body
from tests.support.evaluated import Evaluated, asked, evaluated
from tests.support.feedback_page import TOKENS
from tests.support.harness import running
from tests.support.reward_service import reward_service
from tests.support.worker_services import write_jsonl

PAIRS = 8
ARMS = [{"name": "a", "labels": "imported"}, {"name": "b", "labels": "right"}, {"name": "c", "labels": "long"}]


@dataclass
class World:
    """Services, and a study that uses them; ``seen`` is what progress was shown."""

    folder: Path
    services: Evaluated
    store: str
    scorer: str
    model: Path
    seen: list[tuple[str, int, int, str]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stop_at: int = 10**9

    def show(self, stage: str, done: int, total: int, text: str) -> None:
        """Is killed at the label ``stop_at``."""
        self.seen.append((stage, done, total, text))
        if len(self.seen) >= self.stop_at:
            raise KeyboardInterrupt

    def study(self, name: str, **more: Any) -> CheckedStudy:
        """Of eight pairs of files, by three labellers."""
        values: dict[str, Any] = {
            "name": name,
            "seed": 3,
            "pairs": {"sources": [str(self.folder / "human.jsonl")]},
            "judges": [{"name": "right", "address": self.services.addresses["judge"]}],
            "scorers": [{"name": "long", "address": self.scorer}],
            "arms": ARMS,
            "evaluation": {"prompts": [{"source": str(self.folder / "evaluated.jsonl")}], "bootstrap_samples": 100},
        } | more
        held_out = [str(self.folder / "evaluated.jsonl")]
        train = [str(self.folder / "train.jsonl")]
        base = run_pb2.RunSpec(name="base", prompts=run_pb2.PromptSpec(train=train, held_out=held_out))
        base.policy.model = str(self.model)
        base.sampling.max_new_tokens = 6
        base.comparisons.held_out_fraction = 0.3
        base = fill_run(base)
        spec = fill_defaults(json_format.ParseDict(values, StudySpec()), base)
        return CheckedStudy(spec, self.folder / "studies" / name, base, {}, [], [])

    def label(self, study: CheckedStudy) -> StudyLabels:
        """All of it, again and again if need be."""
        self.seen.clear()
        self.started.clear()
        study.folder.mkdir(parents=True, exist_ok=True)
        found = label_pairs(study, StudyFolder(study.folder), _Served(self), [self.store], self.show)
        assert found is not None
        return found

    def stored(self, run_id: str) -> list[types_pb2.Comparison]:
        """What the preference service has."""
        chosen = preference_pb2.ComparisonFilter(run_id=run_id)
        with connect(self.store) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            pages = stub.StreamComparisons(preference_pb2.StreamComparisonsRequest(filter=chosen), timeout=QUICK)
            return [one for page in pages for one in page.comparisons]


@dataclass
class _Served:
    """``Servers`` of a world: the start is the tiny model, judges run."""

    world: World

    @contextmanager
    def model(self, model: evaluation_pb2.EvaluatedModel) -> Iterator[str]:
        self.world.started.append(model.name)
        config = policy.PolicyConfig(model.model, self.world.folder / "staging-policy")
        with running(policy.build(config)) as at:
            yield at.main

    @contextmanager
    def judge(self, judge: evaluation_pb2.EvaluationJudge) -> Iterator[str]:
        self.world.started.append(judge.name)
        yield judge.address


def number_of(comparison: types_pb2.Comparison) -> int:
    return int(comparison.prompt[0].content.split()[1][:-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("labelling")
    # The judge prefers the wise answer, files agree but for the first pair, longer answers have higher scores.
    rows = [
        {
            "prompt": f"Question {n}?",
            "answer_a": f"A wise answer {n}" + " and more." * (n % 2),
            "answer_b": f"A plain answer {n}" + " and more." * ((n + 1) % 2),
            "label": 0.8 if n else 0.2,
            "dimension": "harmless" if n % 2 else "helpful",
        }
        for n in range(PAIRS)
    ]
    write_jsonl(folder / "human.jsonl", rows)
    write_jsonl(folder / "evaluated.jsonl", [{"prompt": "Measured?", "dimension": "helpful"}])
    write_jsonl(folder / "train.jsonl", [{"prompt": f"Say {n}.", "dimension": "helpful"} for n in range(5)])

    def lengths(request: preference_pb2.PreferenceServiceScoreRequest) -> Iterator[tuple[str, float]]:
        return ((item.id, len(item.answer) / 10) for item in request.items)

    config = preference.PreferenceConfig({"default": str(tiny_model)}, f"sqlite:///{folder}/store.db", folder / "st")
    with (
        evaluated(folder) as services,
        reward_service(lengths) as scorer,
        running(preference.build(config)) as store,
    ):
        yield World(folder, services, store.main, scorer, tiny_model)


@pytest.fixture(autouse=True)
def undisturbed(world: World) -> Iterator[None]:
    yield
    world.stop_at = 10**9
    world.services.before = lambda model, body: None


def test_all_label_the_same_pairs_and_the_store_has_each_under_its_name(world: World) -> None:
    study = world.study("whole")
    found = world.label(study)
    assert (found.pairs, found.left_out, found.dimensions) == (PAIRS, {}, {"helpful": 4, "harmless": 4})
    assert world.started == ["right"]
    by_name = {name: world.stored(f"study-whole-{name}") for name in ("imported", "right", "long")}
    assert [len(found) for found in by_name.values()] == [PAIRS] * 3
    splits = [{number_of(one): one.split for one in found} for found in by_name.values()]
    assert splits[0] == splits[1] == splits[2]
    assert sum(one == types_pb2.SPLIT_HELD_OUT for one in splits[0].values()) == found.held_out
    for one in by_name["imported"]:
        assert (one.source, one.labeller) == (types_pb2.LABEL_SOURCE_IMPORTED, "human.jsonl")
        assert one.probability_a == (0.8 if number_of(one) else 0.2)
    for one in by_name["right"]:
        assert (one.source, one.labeller, one.method) == (types_pb2.LABEL_SOURCE_AI, "judge", "choice")
        assert one.probability_a > 0.5
        assert one.judgements[0].principle_id
        assert one.constitution_digest
    for one in by_name["long"]:
        lead = (len(one.answer_a.text) - len(one.answer_b.text)) / 10
        assert one.probability_a == pytest.approx(1 / (1 + math.exp(-lead)))
        assert (one.labeller, one.method) == ("long", "scores")
    long, right = (next(one for one in found.labellers if one.name == name) for name in ("long", "right"))
    assert (long.kind, long.longer, right.kind, right.model, right.longer) == ("scorer", 1.0, "judge", "judge", 0.5)
    agreed = {(one.judge, one.other, one.dimension): one for one in found.agreement}
    of_files = [(1 if number else -1, 1) for number in range(PAIRS)]
    every = agreed["imported", "right", "all"]
    assert every.same is not None
    assert every.kappa is not None
    assert every.same.value == sum(a == b for a, b in of_files) / PAIRS
    assert every.kappa.value == pytest.approx(cohen_kappa(of_files))
    assert agreed["imported", "right", "harmless"].pairs == 4
    assert read_labelled(StudyFolder(study.folder)) == found

    asked_before = len(world.services.endpoint.requests)
    log = (study.folder / "labels.jsonl").read_bytes()
    assert world.label(study) == found
    assert (world.started, len(world.services.endpoint.requests)) == ([], asked_before)
    assert (study.folder / "labels.jsonl").read_bytes() == log
    assert len(world.stored("study-whole-right")) == PAIRS
    assert labelled(study.spec, StudyFolder(study.folder)) == dict.fromkeys(by_name, (PAIRS, PAIRS))


@pytest.mark.parametrize("stop_at", [3, PAIRS + 6])
def test_a_command_that_was_killed_goes_on_and_asks_nothing_twice(world: World, stop_at: int) -> None:
    study = world.study(f"killed-{stop_at}")
    world.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        world.label(study)
    assert world.stored(f"study-{study.spec.name}-imported") == []
    assert read_labelled(StudyFolder(study.folder)) is None
    log = study.folder / "labels.jsonl"
    with log.open("a") as file:
        file.write('{"half a li')
    world.stop_at = 10**9
    found = world.label(study)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert Counter((line["run_id"], line["id"]) for line in lines).most_common(1)[0][1] == 1
    whole = world.label(world.study("uninterrupted"))
    assert replace(found, agreement=()) == replace(whole, agreement=())
    assert [one.kappa for one in found.agreement] == [one.kappa for one in whole.agreement]


def test_what_one_could_not_label_nobody_learns_from(world: World) -> None:
    def unclear(model: str, body: Body) -> Answer | None:
        return Answer("Hm.", {"Hm": 1.0}) if model == "judge" and asked(body) == "Question 2?" else None

    world.services.before = unclear
    study = world.study("failing")
    with pytest.raises(TooManyFailuresError, match=r"labels of right: 1 of \d left out: .* allows 10%"):
        world.label(study)
    study.base.failures.max_share = 0.2
    found = world.label(study)
    assert (found.pairs, found.left_out) == (PAIRS - 1, {"without a label by right": 1})
    judge = next(one for one in found.labellers if one.name == "right")
    assert (judge.asked, judge.labelled, sum(judge.failures.values())) == (PAIRS, PAIRS - 1, 1)
    for name in ("imported", "right", "long"):
        assert {number_of(one) for one in world.stored(f"study-failing-{name}")} == set(range(PAIRS)) - {2}

    # Who comes later learns from the same pairs, and what arms have learned from stays.
    arms = [*ARMS, {"name": "d", "labels": "again"}]
    judges = [{"name": name, "address": world.services.addresses["judge"]} for name in ("right", "again")]
    world.services.before = lambda model, body: None
    later = world.study("failing", arms=arms, judges=judges)
    later.base.failures.max_share = 0.2
    assert world.label(later).ids == found.ids
    assert {number_of(one) for one in world.stored("study-failing-again")} == set(range(PAIRS)) - {2}
    fewer = world.study("failing", pairs={"sources": [str(world.folder / "human.jsonl")], "count": 4})
    with pytest.raises(RunError, match="are given out already, and the spec takes other pairs now"):
        world.label(fewer)


def test_labels_of_an_earlier_study_of_the_name_are_not_learned_from(world: World) -> None:
    arms = [{"name": "c", "labels": "long"}]
    first = world.study("twice", arms=arms)
    world.label(first)
    before = world.stored("study-twice-long")
    again = replace(world.study("twice", arms=arms), folder=world.folder / "elsewhere")
    again.spec.pairs.count = 4
    with pytest.raises(RunError, match="holds 4 labels of `study-twice-long` that are not of this study"):
        world.label(again)
    assert world.stored("study-twice-long") == before
    # The same labels are no others.
    again.spec.pairs.ClearField("count")
    (again.folder / "labelled.json").unlink()
    assert read_labelled(StudyFolder(first.folder)) == world.label(again)
    assert world.stored("study-twice-long") == before


def test_people_label_on_the_page_and_the_study_waits_for_them(world: World, tmp_path: Path) -> None:
    arms = [{"name": "a", "labels": "people"}, {"name": "b", "labels": "right"}]
    study = world.study("people", arms=arms)
    folder = StudyFolder(study.folder)
    with pytest.raises(WaitingForPeopleError, match=rf"people have labelled 0 of {PAIRS} pairs. `charter feedback"):
        world.label(study)
    assert world.stored("study-people-right") == []
    folder.begin(study)
    page = FeedbackConfig(NOBODY, NOBODY, Labellers(TOKENS), tmp_path / "chats", study=folder, second_share=1.0)
    with people(page, "ann", "ben") as (ann, ben):
        assert ann.client.get("/api/session").json()["chat"] is False
        for _ in range(3):
            ann.vote(ann.next(), "wise", reason="It is wiser.")
        assert labelled(study.spec, folder)["people"] == (3, PAIRS)
        with pytest.raises(WaitingForPeopleError, match="people have labelled 3 of"):
            world.label(study)
        ann.vote_on_all("wise")
        for _ in range(3):
            ben.vote(ben.next(), "plain")
        found = world.label(study)
        # What comes now is too late.
        ben.vote_on_all("plain")
    assert (found.pairs, [one.name for one in found.labellers]) == (PAIRS, ["people", "right"])
    assert world.label(study) == found
    labels = world.stored("study-people-people")
    assert Counter(one.labeller for one in labels) == {"ann": PAIRS - 3, "ann, ben": 3}
    for one in labels:
        assert (one.source, one.method) == (types_pb2.LABEL_SOURCE_HUMAN, "feedback")
        assert one.probability_a == (0.5 if "ben" in one.labeller else float("wise" in one.answer_a.text))
    assert sum("It is wiser." in one.rationale for one in labels) == 3


def test_pairs_are_sampled_once_from_the_start(world: World) -> None:
    arms = [{"name": "c", "labels": "long"}]
    six = world.study("sampled", pairs={"sampled": 6}, arms=arms)
    world.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        world.label(six)
    world.stop_at = 10**9
    begun = (six.folder / "pairs.jsonl").read_text()
    assert begun.count("\n") == 3
    world.label(six)
    written = (six.folder / "pairs.jsonl").read_text()
    assert written.startswith(begun)
    assert world.started == ["start"]
    lines = [json.loads(line) for line in written.splitlines()]
    # Five prompts: one comes again, and gets other answers.
    assert len({line["prompt"][0]["content"] for line in lines}) == 5
    assert len({line["id"] for line in lines}) == 6
    assert {line["dimension"] for line in lines} == {"helpful"}
    whole = world.study("sampled-whole", pairs={"sampled": 6}, arms=arms)
    world.label(whole)
    assert (whole.folder / "pairs.jsonl").read_text() == written
    few = world.study("sampled-few", pairs={"sampled": 4}, arms=arms)
    world.label(few)
    assert written.startswith((few.folder / "pairs.jsonl").read_text())
    other = world.study("sampled", pairs={"sampled": 6}, arms=arms, seed=4)
    with pytest.raises(RunError, match="holds pairs of other prompts than the spec samples now"):
        world.label(other)


def test_without_arms_that_learn_from_labels_nobody_is_asked(world: World) -> None:
    study = world.study("none", arms=[{"name": "plain"}])
    assert label_pairs(study, StudyFolder(study.folder), _Served(world), [NOBODY], world.show) is None
