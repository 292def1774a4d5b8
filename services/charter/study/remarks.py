"""Which judges that measure the arms have taught some of them, too: allowed, and said."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from charter.evaluation.compare.trained import remarks
from charter.spec.constitution import load_constitution
from charter.spec.facts import taught_by_judge
from charter.spec.problems import Problem
from charter.study.spec import StudySpec, labellers_of, started_from
from charter.v1 import evaluation_pb2, run_pb2


def trained_judges(spec: StudySpec, arms: Mapping[str, run_pb2.RunSpec]) -> Iterator[Problem]:
    """A remark for each judge of the measurement whose model or constitution some arm has learned from.

    Raises ``ConstitutionError``, ``OSError`` for a constitution that was not looked into before.
    """
    taught = {arm.name: _teachers(spec, arm.name, arms) for arm in spec.arms}
    for index, judge in enumerate(spec.evaluation.judges):
        found = _judge(judge)
        served = {"model": found["judge"], "constitution_digest": found["constitution_digest"]}
        for remark in remarks(judge.name, served, taught):
            yield Problem(f"evaluation.judges[{index}]", remark)


def _teachers(spec: StudySpec, name: str, arms: Mapping[str, run_pb2.RunSpec]) -> list[dict[str, str]]:
    """The judges that an arm learns from, or the one that it starts from has learned from."""
    arm = next(one for one in spec.arms if one.name == name)
    judges = {one.name: one for one in spec.judges}
    found = [_judge(judges[labeller]) for labeller in labellers_of(arm) if labeller in judges]
    run = arms[name]
    if taught_by_judge(run):
        found.append({"judge": run.judge.model, "constitution_digest": _digest(run.judge.constitution)})
    before = started_from(spec)[name]
    return found + (_teachers(spec, before, arms) if before else [])


def _judge(judge: evaluation_pb2.EvaluationJudge) -> dict[str, str]:
    """Of a service that runs already only its address is known here."""
    return {"judge": judge.address or judge.model, "constitution_digest": _digest(judge.constitution)}


def _digest(constitution: str) -> str:
    return load_constitution(Path(constitution)).digest if constitution else ""
