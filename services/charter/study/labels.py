"""The labels of a study's pairs: under which run ids the store has them, and what came of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from charter.atomic_files import write_json
from charter.evaluation.compare.agreement import Agreement
from charter.state_files import read_text
from charter.study.folder import StudyFolder
from charter.study.spec import StudySpec
from charter.v1 import run_pb2, study_pb2

_ADVICE = "Delete it: `charter compare` makes it again from the labels"


@dataclass(frozen=True, slots=True)
class Labeller:
    """Who labelled, and how that went. ``kind`` is imported, people, judge or scorer."""

    name: str
    kind: str
    # Of a judge what it is and judges by; of others who they are.
    model: str
    method: str
    constitution_digest: str
    asked: int
    labelled: int
    # Of the pairs without a label, by kind.
    failures: dict[str, int]
    # Share of the labels that prefer the longer answer (in characters), a tie counted half; None without such pairs.
    longer: float | None


@dataclass(frozen=True, slots=True)
class StudyLabels:
    """What the arms learn from (``labelled.json``): the pairs that every labeller has labelled."""

    # Of these pairs, as ``charter.storage.comparisons.content_id`` gives them.
    ids: tuple[str, ...]
    # How many of them are held out from every fit, and of which dimensions they are.
    held_out: int
    dimensions: dict[str, int]
    # Pairs that nobody learns from, by why.
    left_out: dict[str, int]
    labellers: tuple[Labeller, ...]
    # Of every two labellers on the pairs that both have labelled, over all and by dimension.
    agreement: tuple[Agreement, ...]

    @property
    def pairs(self) -> int:
        """How many every arm learns from."""
        return len(self.ids)


def run_id_of(spec: StudySpec, labeller: str) -> str:
    """Of a labeller's labels in the store."""
    return f"study-{spec.name}-{labeller}"


def stored_of(spec: StudySpec, arm: study_pb2.StudyArm) -> list[run_pb2.StoredComparisons]:
    """What an arm's preference model is fitted to; nothing where it learns from no labels."""
    if arm.labels:
        return [run_pb2.StoredComparisons(run_id=run_id_of(spec, arm.labels))]
    return [
        run_pb2.StoredComparisons(run_id=run_id_of(spec, labeller), dimension=dimension)
        for dimension, labeller in sorted(arm.labels_by_dimension.items())
    ]


def with_stored(run: run_pb2.RunSpec, stored: Sequence[run_pb2.StoredComparisons]) -> run_pb2.RunSpec:
    """Copy of a spec without defaults that learns from these labels alone, whatever it says of others."""
    made = run_pb2.RunSpec()
    made.CopyFrom(run)
    if not stored:
        return made
    made.ClearField("feedback")
    for field in ("stored", "pairs", "refresh_every_steps", "refresh_pairs"):
        made.comparisons.ClearField(field)
    made.comparisons.stored.extend(stored)
    if made.preference_model.HasField("warm_start_epochs"):
        made.preference_model.ClearField("warm_start_epochs")
    return made


def read_labelled(folder: StudyFolder) -> StudyLabels | None:
    """What came of the labels; None before all that the arms need is labelled. Raises ``StateFileError``."""
    if not folder.labelled.exists():
        return None
    return read_text(folder.labelled, TypeAdapter(StudyLabels).validate_json, _ADVICE)


def write_labelled(folder: StudyFolder, labels: StudyLabels) -> None:
    """Say that the arms may begin."""
    write_json(folder.labelled, asdict(labels))
