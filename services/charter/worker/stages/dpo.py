"""The policy learns from comparisons that are there (``dpo/``, ``dpo.json``)."""

from typing import Final

from charter.v1 import run_pb2
from charter.worker.context import Run
from charter.worker.offline.comparisons import read_comparisons
from charter.worker.offline.dpo import DpoLearner
from charter.worker.stages.labelled import plan_of
from charter.worker.supervised.loop import learn

NAME: Final = "dpo"


class DirectPreferenceOptimisation:
    """DPO on comparisons of files and of the store."""

    phase = run_pb2.PHASE_DPO

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether there is something to learn from."""
        return spec.HasField(NAME)

    def done(self, run: Run) -> bool:
        """Whether what comes next starts from what was learned here."""
        return NAME in run.artifacts.learned

    def work(self, run: Run) -> None:
        """Raises ``SpecError`` for data that cannot be used."""
        learn(run, plan_of(run, NAME, run.spec.dpo, DpoLearner, read_comparisons, lambda _: True))
