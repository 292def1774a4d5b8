"""Rules of a run spec about the labels that DPO and KTO learn from."""

from collections.abc import Iterator

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
