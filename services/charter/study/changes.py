"""What differs between the study that a folder was begun with and one that it is to go on with."""

from charter.listed import listed
from charter.study.folder import StudyFolder
from charter.study.spec import CheckedStudy, StudySpec, labellers, started_from
from charter.v1 import study_pb2


def changes(folder: StudyFolder, study: CheckedStudy) -> list[str]:
    """Why what is stored is none of this study's; empty where it can go on.

    Arms and seeds may be added and left out, and so may prompts and judges of the measurement, which has rules of its
    own. What the runs that have begun learned from stays. Raises ``StateFileError``.
    """
    before = folder.read_spec()
    if before is None:
        return []
    found, runs = [], folder.read_runs()
    begun = {arm for arm, _ in runs}
    settled = bool(runs) or folder.labelled.exists()
    if (folder.pairs.exists() or runs) and _pairs(before, settled) != _pairs(study.spec, settled):
        found.append("pairs or seed changed, and pairs were taken")
    if runs and (missing := set(labellers(before)) ^ set(labellers(study.spec))):
        found.append(
            f"labels of {listed(sorted(missing))} came or went, and arms have learned from those that all gave"
        )
    old, new = _by_name(before), _by_name(study.spec)
    if folder.labels.exists():
        found += [f"{name}, who has labelled, changed" for name in labellers(before) if old.get(name) != new.get(name)]
    arms, now = folder.read_arms(), started_from(study.spec)
    for name in sorted(begun & study.arms.keys()):
        if arms[name] != study.arms[name] or started_from(before)[name] != now[name]:
            found.append(f"arm {name}, of which runs have begun, is told something else")
    if begun and before.evaluation.every_steps != study.spec.evaluation.every_steps:
        found.append("evaluation.every_steps changed, and the runs that have begun keep the checkpoints of before")
    return found


def _by_name(spec: StudySpec) -> dict[str, object]:
    return {one.name: one for one in spec.judges} | {one.name: one for one in spec.scorers}


def _pairs(spec: StudySpec, settled: bool) -> tuple[object, int]:
    """What decides which pairs there are; how many are taken only once arms may have learned from them."""
    pairs = study_pb2.StudyPairs()
    pairs.CopyFrom(spec.pairs)
    if not settled:
        pairs.ClearField("count")
        pairs.ClearField("sampled")
    return pairs, spec.seed
