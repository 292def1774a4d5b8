"""The policy learns from answers with a thumb up or down (``kto/``, ``kto.json``)."""

from functools import partial
from typing import Final

from charter.v1 import run_pb2, types_pb2
from charter.worker.context import Run
from charter.worker.offline.kto import KtoLearner
from charter.worker.offline.thumbs import DOWN, UP, read_thumbs, with_other_answers
from charter.worker.stages.labelled import plan_of
from charter.worker.supervised.corpus import SourceItems
from charter.worker.supervised.loop import learn

NAME: Final = "kto"
# Of lambda_D times good answers to lambda_U times bad ones (section 4.2 of the paper).
_ADVISED = (1.0, 1.5)


class KahnemanTverskyOptimisation:
    """KTO on rated answers of files and of the store."""

    phase = run_pb2.PHASE_KTO

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether there is something to learn from."""
        return spec.HasField(NAME)

    def done(self, run: Run) -> bool:
        """Whether what comes next starts from what was learned here."""
        return NAME in run.artifacts.learned

    def work(self, run: Run) -> None:
        """Raises ``SpecError`` for data that cannot be used."""
        spec = run.spec.kto

        def prepare(corpus: dict[str, SourceItems], most: int) -> dict[str, SourceItems]:
            _say_balance(run, corpus)
            return with_other_answers(corpus, most, run.spec.seed)

        learner = partial(
            KtoLearner, desirable_weight=spec.desirable_weight, undesirable_weight=spec.undesirable_weight
        )
        learn(run, plan_of(run, NAME, spec, learner, read_thumbs, _is_rated, prepare=prepare))


def _is_rated(comparison: types_pb2.Comparison) -> bool:
    return bool(comparison.answer_a.rating or comparison.answer_b.rating)


def _say_balance(run: Run, corpus: dict[str, SourceItems]) -> None:
    spec = run.spec.kto
    good, bad = (sum(one.verdicts.get(verdict, 0) for one in corpus.values()) for verdict in (UP, DOWN))
    ratio = spec.desirable_weight * good / (spec.undesirable_weight * bad)
    if not _ADVISED[0] <= ratio <= _ADVISED[1]:
        text = (
            f"{good} thumbs up and {bad} down: with kto.desirable_weight {spec.desirable_weight:g} and "
            f"kto.undesirable_weight {spec.undesirable_weight:g} the good ones weigh {ratio:.2g} times as much as the "
            f"bad ones; the paper advises {_ADVISED[0]:g} to {_ADVISED[1]:g} times"
        )
        run.reporter.report(0, 0, text=text)
