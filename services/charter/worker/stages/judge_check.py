"""Measures the judge on labelled pairs, so that everything after it can be read in that light."""

from dataclasses import asdict, replace

from charter.data.errors import DataError
from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from charter.data.sources import Source
from charter.evaluation.judge.check import judge_check_of, without_fitted
from charter.rpc.messages import proto_messages
from charter.runs.results import LeftOut, write_result
from charter.spec.bad_rows import bad_rows_of
from charter.spec.facts import needs_reinforcement
from charter.v1 import judge_pb2, run_pb2
from charter.worker.clients.failed import failure_of
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.failures import Failures
from charter.worker.seeds import derive_seed, stable_fraction

# The stage of ``Failures``.
CHECKING = "checking the judge"
# Pairs in one call, so that progress shows.
_BATCH = 16


class JudgeCheck:
    """Writes ``judge_check.json``, unless no pair could be judged in a run that was resumed nevertheless."""

    phase = run_pb2.PHASE_CHECKING_JUDGE

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the spec names labelled pairs."""
        return bool(spec.judge.labelled_pairs) and needs_reinforcement(spec)

    def done(self, run: Run) -> bool:
        """Whether they are judged."""
        return (run.artifacts.folder / "judge_check.json").exists()

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when the calibration was fitted on all of them."""
        spec = run.spec.judge
        bad = bad_rows_of(run.spec, run.artifacts.left_out("labelled_pairs"))
        try:
            every = read_labelled_pairs(spec.labelled_pairs, bad)
        except DataError as error:
            raise RunError(str(error)) from error
        if bad.counts:
            items = len(every) + bad.counts.total()
            run.artifacts.record["left_out"]["labelled pairs"] = asdict(LeftOut(items, dict(bad.counts)))
        try:
            unseen = without_fitted(every, run.services.judge.info().calibration.fitted_prompts)
        except ValueError as error:
            raise RunError(f"{error}: name others as judge.labelled_pairs, or none") from error
        left_out = len(every) - len(unseen)
        pairs = _chosen(unseen, spec.labelled_pairs_limit)
        judgements: list[judge_pb2.Judgement] = []
        failures = Failures(run, CHECKING, len(pairs))
        for start in range(0, len(pairs), _BATCH):
            run.reporter.raise_if_stopped()
            judgements += _judge(run, pairs[start : start + _BATCH], start)
            failures.add([failure_of(one) for one in judgements[start:]])
            run.reporter.report(len(judgements), len(pairs), text=failures.so_far.in_words())
        if failures.so_far.failures == len(pairs):
            run.reporter.report(len(pairs), len(pairs), text="no labelled pair could be judged: no check")
            return
        result = judge_check_of(
            pairs, judgements, source=Source.parse(spec.labelled_pairs).name, seed=run.spec.seed, left_out=left_out
        )
        result = replace(result, failures=result.failures | dict(bad.counts))
        write_result(run.artifacts.folder, "judge_check", result)
        run.reporter.report(
            len(pairs),
            len(pairs),
            numbers={"judge_accuracy": result.calibration.accuracy, "judge_failures": sum(result.failures.values())},
            text=f"judge agrees with {result.calibration.accuracy:.0%} of {result.calibration.pairs} labelled pairs"
            + (f"; {left_out} are left out, on whose prompts its calibration was fitted" if left_out else ""),
        )


def _chosen(pairs: list[LabelledPair], limit: int) -> list[LabelledPair]:
    """At most ``limit`` pairs, by a hash of their content: the same ones in every run, whatever the file's order."""
    return sorted(pairs, key=lambda pair: stable_fraction(pair.group, pair.answer_a, pair.answer_b))[:limit]


def _judge(run: Run, pairs: list[LabelledPair], start: int) -> list[judge_pb2.Judgement]:
    items = [
        judge_pb2.ComparisonItem(
            id=f"check-{start + place}",
            prompt=proto_messages(pair.prompt),
            answer_a=pair.answer_a,
            answer_b=pair.answer_b,
            dimension=run.judged_dimension(pair.dimension),
        )
        for place, pair in enumerate(pairs)
    ]
    judged = run.services.judge.compare(items, run.judging_options(derive_seed(run.spec.seed, "judge check")))
    return [judged[item.id] for item in items]
