"""The runs of a study: what each is told, and which is next."""

from collections.abc import Collection, Mapping

from charter.spec.defaults import with_addresses
from charter.study.arms import replace_field
from charter.study.folder import StudyRun
from charter.study.spec import CheckedStudy, StudySpec, run_name, started_from
from charter.v1 import run_pb2

Key = tuple[str, int]


def all_runs(spec: StudySpec) -> list[Key]:
    """Arm and seed of every run, in their order: whole sets of arms, each after the one that it starts from."""
    return [(arm, seed) for seed in spec.seeds for arm in _in_order(spec)]


def runs_left(spec: StudySpec, runs: Mapping[Key, StudyRun]) -> list[Key]:
    """Those of ``all_runs`` that have not made their policy."""
    return [key for key in all_runs(spec) if not (key in runs and runs[key].succeeded)]


def run_spec(
    study: CheckedStudy, arm: str, seed: int, start: str, slot: int, services: run_pb2.ServiceAddresses
) -> run_pb2.RunSpec:
    """What the run of an arm with a seed is told.

    Args:
        study: checked.
        arm: its name.
        seed: of the run.
        start: folder of the policy that it starts from, that of the arm it comes after; empty for the study's start.
        slot: its place in the slots of the study, if there are any.
        services: where those are that nothing else is said of.
    """
    spec = run_pb2.RunSpec()
    spec.CopyFrom(study.arms[arm])
    spec.name, spec.seed = run_name(study.spec, arm, seed), seed
    if start:
        # The preference model stays the one that all arms fit from.
        spec.policy.model = start
    if study.spec.evaluation.every_steps:
        spec.checkpoints.curve_every_steps = study.spec.evaluation.every_steps
    if study.spec.slots:
        # Of a run that was noted when there were more slots, the last.
        slot_services = study.spec.slots[min(slot, len(study.spec.slots) - 1)]
        for field, _ in slot_services.ListFields():
            # What an arm says itself comes first: a judge of its own is its own in every slot.
            if getattr(spec.services, field.name) == getattr(study.base.services, field.name):
                replace_field(spec.services, slot_services, field.name)
    return with_addresses(spec, services)


def stores(study: CheckedStudy, services: run_pb2.ServiceAddresses) -> list[str]:
    """Addresses of the preference services that runs learn from, each once; ``services`` as of ``run_spec``."""
    specs = (
        run_spec(study, arm, study.spec.seeds[0], "", slot, services)
        for arm in study.arms
        for slot in range(max(1, len(study.spec.slots)))
    )
    return list(dict.fromkeys(spec.services.preference for spec in specs))


def next_run(spec: StudySpec, runs: Mapping[Key, StudyRun], left_alone: Collection[Key], slot: int) -> Key | None:
    """The first run that can begin, or go on, in a slot now; None where there is none.

    ``left_alone`` are those that are under way, and those that this command does not try (again).
    """
    before = started_from(spec)
    for arm, seed in all_runs(spec):
        known, earlier = runs.get((arm, seed)), before[arm]
        if (arm, seed) in left_alone or (known is not None and (known.succeeded or known.slot != slot)):
            continue
        if not earlier or ((found := runs.get((earlier, seed))) is not None and found.succeeded):
            return arm, seed
    return None


def slots_of(spec: StudySpec, runs: Mapping[Key, StudyRun]) -> range:
    """Places of the slots: one at least, and those that runs have begun in."""
    return range(max(1, len(spec.slots), 1 + max((run.slot for run in runs.values()), default=0)))


def policy_of(run: StudyRun) -> str:
    """Folder of the policy that a run has made."""
    return f"{run.artifacts}/policy"


def _in_order(spec: StudySpec) -> list[str]:
    before, ordered = started_from(spec), list[str]()
    waiting = [arm.name for arm in spec.arms]
    while waiting:
        arm = next(one for one in waiting if not before[one] or before[one] in ordered)
        waiting.remove(arm)
        ordered.append(arm)
    return ordered
