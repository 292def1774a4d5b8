"""What is wrong in ``evaluation.compare`` of a spec."""

from collections.abc import Iterator, Sequence

from charter.listed import listed
from charter.spec import facts
from charter.spec.problems import Problem
from charter.v1 import run_pb2

# Names of judges that are no service: the run's own, and the votes of people.
OWN, PEOPLE = "own", "people"
# Dimension of the figures over prompts of every dimension, and what is wrong with prompts of one of that name.
ALL = "all"
ALL_TAKEN = f"prompts of dimension `{ALL}`, which figures of all prompts stand under: give them another"
# Kinds of prompts: of the answers to them it is asked whether they decline.
HARMFUL, LOOK_ALIKE = "harmful", "look_alike"
_FIELD = "evaluation.compare"


def compared(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """The stages must be the run's, and every name one thing's."""
    if not spec.evaluation.HasField("compare"):
        return
    compare = spec.evaluation.compare
    if not facts.needs_reinforcement(spec):
        yield Problem(
            _FIELD,
            "needs policy and judge services, and this run only learns from data: compare its folders by `charter "
            "evaluate`, as `model: RUN/dpo`",
        )
        return
    there = facts.compared_stages(spec)
    seen: set[str] = set()
    for index, stage in enumerate(compare.stages):
        field = f"{_FIELD}.stages[{index}]"
        if stage in seen:
            yield Problem(field, f"names {stage} again: leave it out")
        elif stage not in there:
            yield Problem(field, f"the run has no stage {stage}; it has {listed(there)}")
        seen.add(stage)
    if len(compare.stages) + len(compare.models) == 1 and compare.stages:
        yield Problem(f"{_FIELD}.stages", "is one model, and at least two are compared: name another")
    for index, one in enumerate(compare.prompts):
        if one.dimension == ALL:
            yield Problem(f"{_FIELD}.prompts[{index}].dimension", f"makes {ALL_TAKEN}")
    if lone := lone_kind([one.kind for one in compare.prompts]):
        index, problem = lone
        yield Problem(f"{_FIELD}.prompts[{index}].kind", problem)
    for kind, taken in (("models", set(there)), ("judges", {OWN, PEOPLE})):
        for index, named in enumerate(getattr(compare, kind)):
            if named.name in taken:
                yield Problem(f"{_FIELD}.{kind}[{index}].name", f"`{named.name}` is the name of another: give it one")
            taken.add(named.name)


def lone_kind(kinds: Sequence[str]) -> tuple[int, str] | None:
    """Place of the first prompts that are of a kind while none are of the other, and what is wrong with that.

    Args:
        kinds: of each source of prompts ``harmful``, ``look_alike`` or nothing.
    """
    for kind, other in ((HARMFUL, LOOK_ALIKE), (LOOK_ALIKE, HARMFUL)):
        if kind in kinds and other not in kinds:
            text = f"needs prompts of kind {other} beside it: who declines everything is known only from both"
            return kinds.index(kind), text
    return None
