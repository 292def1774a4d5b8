"""Rules across the fields of a study's spec, without a look into any file."""

from collections.abc import Callable, Iterator

from charter.listed import listed
from charter.spec.comparison_checks import ALL
from charter.spec.problems import Problem
from charter.study.points import all_points
from charter.study.spec import (
    IMPORTED,
    PEOPLE,
    START,
    StudySpec,
    known_labellers,
    labellers,
    labellers_of,
    run_name,
    started_from,
)

# As in ``RunSpec.name`` and ``EvaluateSpec.models``.
_LONGEST_NAME, _MOST_MODELS = 62, 100


def broken_rules(spec: StudySpec) -> Iterator[Problem]:
    """Every mistake of a filled spec, in no order."""
    for rule in _RULES:
        yield from rule(spec)


def too_many_models(spec: StudySpec, steps: dict[str, int]) -> Iterator[Problem]:
    """Policies that are measured, and the curves that they are points of; ``steps`` are those of RL, by arm."""
    every = spec.evaluation.every_steps
    if every and steps and every >= max(steps.values()):
        most = max(steps.values())
        yield Problem(
            "evaluation.every_steps",
            f"is {every}, and the longest arm has {most} steps of RL: none before the last would be measured. Lower "
            "it, or leave it out",
        )
    elif (count := len(all_points(spec, steps)) + 1) > _MOST_MODELS:
        text = f"{count} policies would be measured, at most {_MOST_MODELS} can be: take fewer seeds or arms"
        field = "evaluation.every_steps" if every else "seeds"
        yield Problem(field, f"{text}, or a larger every_steps" if every else text, ("seeds", "arms"))


def _names(spec: StudySpec) -> Iterator[Problem]:
    taken = {IMPORTED: "the labels of pairs.sources", PEOPLE: "what people say on the feedback page"}
    for kind in ("judges", "scorers"):
        for index, one in enumerate(getattr(spec, kind)):
            if one.name in taken:
                yield Problem(f"{kind}[{index}].name", f"`{one.name}` is the name of {taken[one.name]}: give another")
            taken.setdefault(one.name, f"{kind}[{index}] too")
    arms = {START: "what all arms start from"}
    for index, arm in enumerate(spec.arms):
        if arm.name in arms:
            yield Problem(f"arms[{index}].name", f"`{arm.name}` is the name of {arms[arm.name]}: give another")
        arms.setdefault(arm.name, f"arms[{index}] too")
        name = run_name(spec, arm.name, max(spec.seeds))
        if len(name) > _LONGEST_NAME:
            text = f"makes `{name}` the name of a run, which has {len(name)} characters: at most {_LONGEST_NAME} can be"
            yield Problem(f"arms[{index}].name", f"{text}. Shorten the name of the arm or the study", ("name", "seeds"))
    for index, seed in enumerate(spec.seeds):
        if seed in spec.seeds[:index]:
            yield Problem(f"seeds[{index}]", f"{seed} is there already: the run would be the same")


def _labels(spec: StudySpec) -> Iterator[Problem]:
    known = known_labellers(spec)
    for index, arm in enumerate(spec.arms):
        field = f"arms[{index}]"
        if arm.labels and arm.labels_by_dimension:
            yield Problem(
                f"{field}.labels_by_dimension", "and labels are both there: leave one out", (f"{field}.labels",)
            )
        named = {f"{field}.labels": arm.labels} if arm.labels else {}
        named |= {f"{field}.labels_by_dimension.{key}": name for key, name in sorted(arm.labels_by_dimension.items())}
        for place, name in named.items():
            if name not in known:
                yield Problem(place, f"nobody is named `{name}`; there are {listed(known)}", ("judges", "scorers"))
            elif name == IMPORTED and spec.HasField("pairs") and not spec.pairs.sources:
                text = "are the labels of files, and pairs.sources names none: name some, or another labeller"
                yield Problem(place, text, ("pairs",))
    if labellers(spec) and not spec.HasField("pairs"):
        yield Problem("pairs", "is required, for arms learn from labels of pairs: sources, or how many are sampled")
    if spec.HasField("pairs") and not any(labellers_of(arm) for arm in spec.arms):
        yield Problem(
            "pairs", "are there, and no arm learns from their labels: leave them out, or name labels", ("arms",)
        )


def _after(spec: StudySpec) -> Iterator[Problem]:
    before = started_from(spec)
    for index, arm in enumerate(spec.arms):
        field = f"arms[{index}].after"
        if arm.after and arm.after not in before:
            yield Problem(field, f"there is no arm `{arm.after}`; there are {listed(list(before))}", ("arms",))
            continue
        way = [arm.name]
        while (earlier := before.get(way[-1], "")) and earlier not in way:
            way.append(earlier)
        if earlier == arm.name:
            circle = " after ".join([*way, earlier])
            yield Problem(field, f"goes in a circle: {circle}. One of them must start from the start", ("arms",))


def _axes(spec: StudySpec) -> Iterator[Problem]:
    given = spec.evaluation.axes
    if len(given) != 2 or given[0] == given[1]:
        yield Problem(
            "evaluation.axes",
            f"are two different dimensions, across and up, as [helpful, harmless]; {len(given)} given",
        )
        return
    if ALL in given:
        yield Problem("evaluation.axes", f"`{ALL}` stands for prompts of every dimension: name one")


def _slots(spec: StudySpec) -> Iterator[Problem]:
    for name, why in (("policy", "its runs would overwrite each other's weights"), ("preference", "its models")):
        seen: dict[str, int] = {}
        for index, slot in enumerate(spec.slots):
            given = list(slot.policy) if name == "policy" else [slot.preference] * bool(slot.preference)
            if not given:
                yield Problem(f"slots[{index}].{name}", "is required: each slot has services of its own")
            for address in given:
                if address in seen:
                    text = f"{address} is that of slots[{seen[address]}] too: {why}"
                    yield Problem(f"slots[{index}].{name}", text)
                seen.setdefault(address, index)


_RULES: tuple[Callable[[StudySpec], Iterator[Problem]], ...] = (_names, _labels, _after, _axes, _slots)
