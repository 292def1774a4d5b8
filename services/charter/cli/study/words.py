"""Runs and times of a study as people read them."""

from charter.study.folder import StudyRun


def run_words(run: StudyRun) -> str:
    """For example ``rlaif, seed 2``."""
    return f"{run.arm}, seed {run.seed}"


def duration(seconds: float) -> str:
    """For example ``40 s``, ``12 min`` or ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
