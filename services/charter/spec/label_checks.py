"""Rules of a run spec about labels of files and of the store: of DPO, of KTO, and of the preference model."""

from collections.abc import Iterator

from charter.spec import facts
from charter.spec.problems import Problem
from charter.v1 import run_pb2

# In ``StoredComparisons.run_id``: the run itself.
OWN = "own"


def labelled(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Where the labels of DPO and KTO are."""
    sections: dict[str, run_pb2.DpoSpec | run_pb2.KtoSpec] = {}
    if spec.HasField("dpo"):
        sections["dpo"] = spec.dpo
    if spec.HasField("kto"):
        sections["kto"] = spec.kto
    for name, section in sections.items():
        if not section.data and not section.HasField("stored"):
            yield Problem(f"{name}.data", f"needs at least one source: what is learned from, or {name}.stored")
        if not section.HasField("stored"):
            continue
        if section.stored.HasField("weight") != all(one.HasField("weight") for one in section.data) and section.data:
            text = f"must be there where {name}.data has weights, and nowhere else"
            yield Problem(f"{name}.stored.weight", text, (f"{name}.data",))
        if section.stored.run_id == OWN and (name == "kto" or not spec.HasField("revision")):
            what = "rated none of its answers" if name == "kto" else "compared nothing: only a `revision` does"
            yield Problem(f"{name}.stored.run_id", f"is {OWN}, and before this stage the run has {what}", ("revision",))


def fitted(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """What ``comparisons.stored`` leaves no room for: it alone says what the preference model is fitted to."""
    comparisons, field = spec.comparisons, "comparisons.stored"
    if not comparisons.stored:
        return
    if not facts.needs_preference_model(spec):
        text = "is what a preference model is fitted to, and this run has none: leave it out"
        yield Problem(field, text, ("ppo.algorithm", "reward.preference_weight"))
    if spec.HasField("feedback"):
        yield Problem("feedback", f"says whose labels are learned, and so does {field}: leave one out", (field,))
    for name in ("pairs", "refresh_every_steps", "refresh_pairs"):
        if comparisons.HasField(name):
            text = f"is about pairs that are sampled, and with {field} none are: leave one out"
            yield Problem(f"comparisons.{name}", text, (field,))
    if spec.preference_model.warm_start_epochs:
        text = f"learns from all imported comparisons, and {field} says that nothing else is learned: leave one out"
        yield Problem("preference_model.warm_start_epochs", text, (field,))
    for index, one in enumerate(comparisons.stored):
        if one.HasField("weight"):
            yield Problem(f"{field}[{index}].weight", "has no meaning here: every label counts once. Leave it out")
        if one.run_id == OWN and not spec.HasField("revision"):
            text = f"is {OWN}, and with {field} the run compares nothing itself: only a `revision` does"
            yield Problem(f"{field}[{index}].run_id", text, ("revision",))
