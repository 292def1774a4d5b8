"""Pairs of a study, to be labelled by people."""

from charter.feedback.pairs import Pair, pair_of
from charter.study.folder import StudyFolder
from charter.study.pairs import stored_pairs


def studied_pairs(folder: StudyFolder) -> list[Pair]:
    """Its pairs in the order in which they are taken: where fewer are wanted, it is the first of them.

    Raises ``ValueError`` where it has none yet, ``StateFileError``, ``OSError``.
    """
    spec = folder.read_spec()
    pairs = [] if spec is None else stored_pairs(spec, folder)
    if not pairs:
        raise ValueError(f"there are no pairs to compare in {folder.path} yet: `charter compare SPEC` takes them first")
    return [pair_of(pair) for pair in pairs]
