"""The policy learns from revisions that were accepted, beside answers that help (``revised/``, ``revised.json``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from charter.v1 import run_pb2
from charter.worker.context import Run
from charter.worker.stages.revise import HELPFUL, REVISED, accepted_revisions
from charter.worker.stages.supervised import plan_of
from charter.worker.supervised.corpus import names_of, weights_of
from charter.worker.supervised.loop import learn
from charter.worker.supervised.mixture import Mixture

NAME: Final = "revised"
# Fewer say nothing that a gradient could learn, and leave nothing to hold out.
LEAST = 2
_REVISIONS, _OWN = "accepted revisions", "own answers"


class RevisionLearning:
    """Fine-tunes the policy on the revisions, as ``revision.learning`` says."""

    phase = run_pb2.PHASE_REVISING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether answers are revised."""
        return spec.HasField("revision")

    def done(self, run: Run) -> bool:
        """Whether what comes next starts from what was learned here, or nothing was accepted."""
        return NAME in run.artifacts.learned or accepted_revisions(run) < LEAST

    def work(self, run: Run) -> None:
        """Raises as ``charter.worker.supervised.loop.learn``."""
        spec, folder = run.spec.revision, run.artifacts.folder / "revision"
        revisions, helpful = {_REVISIONS: str(folder / REVISED)}, _helpful(spec, folder)
        weights = weights_of(spec.helpful, helpful)

        def mix(tokens: Mapping[str, list[int]]) -> Mixture:
            mixture = Mixture.weighted({_REVISIONS: tokens[_REVISIONS]}, {})
            if not helpful:
                return mixture
            others = {name: counts for name, counts in tokens.items() if name != _REVISIONS}
            return mixture.beside(Mixture.weighted(others, weights), spec.helpful_share)

        sources = revisions | helpful
        learn(run, plan_of(run, NAME, "revision.learning", spec.learning, sources, mix, last_only=True))


def _helpful(spec: run_pb2.RevisionSpec, folder: Path) -> dict[str, str]:
    """Where the answers that help are, by name."""
    if not spec.helpful_share:
        return {}
    if spec.helpful:
        return names_of(spec.helpful)
    own = folder / HELPFUL
    return {_OWN: str(own)} if own.is_file() and own.stat().st_size else {}
