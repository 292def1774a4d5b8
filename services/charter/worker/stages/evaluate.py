"""Lets the judge compare the aligned policy with the one it started from, on held-out prompts."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean

from charter.data.prompts import TaskPrompt
from charter.evaluation.figures.win_rate import win_rate
from charter.outcomes import outcome_of
from charter.runs.results import Evaluation, EvaluationRow, write_result
from charter.spec.facts import needs_reinforcement
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2, run_pb2
from charter.worker.answer_log import Written
from charter.worker.clients.failed import failure_of
from charter.worker.clients.served import policy_serves, serve_saved_policy
from charter.worker.context import Run
from charter.worker.failures import Failures, draws
from charter.worker.seeds import derive_seed
from charter.worker.stages.answers import AFTER, BEFORE, held_out_prompts, sample_answers

# The stage of ``Failures``.
EVALUATING = "evaluation"
# Pairs in one call, so that progress shows.
_BATCH = 16


class FinalEvaluation:
    """Writes ``evaluation.json``, unless nothing could be judged in a run that was resumed nevertheless."""

    phase = run_pb2.PHASE_EVALUATING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the policy learns by RL."""
        return needs_reinforcement(spec)

    def done(self, run: Run) -> bool:
        """Whether the answers are compared."""
        return (run.artifacts.folder / "evaluation.json").exists()

    def work(self, run: Run) -> None:
        """Raises ``TooManyFailuresError`` when too many comparisons cannot be judged."""
        version = run.artifacts.record["policy_version"]
        if not policy_serves(run, version):
            serve_saved_policy(run, str(run.artifacts.policy), version)
        prompts = held_out_prompts(run)
        before = sample_answers(run, BEFORE, prompts, lambda: run.start.version)
        after = sample_answers(run, AFTER, prompts, lambda: version)
        judgements: list[judge_pb2.Judgement] = []
        failures = Failures(run, EVALUATING, len(prompts))
        for start in range(0, len(prompts), _BATCH):
            run.reporter.raise_if_stopped()
            rows = slice(start, start + _BATCH)
            judgements += _judge(run, prompts[rows], before[rows], after[rows], start)
            failures.add([failure_of(one) for one in judgements[start:]])
            run.reporter.report(len(judgements), len(prompts), text=failures.so_far.in_words())
        if failures.so_far.failures == len(prompts):
            run.reporter.report(len(prompts), len(prompts), text="no held-out prompt could be judged: no evaluation")
            return
        result = _evaluation(run, prompts, before, after, judgements)
        write_result(run.artifacts.folder, "evaluation", result)
        run.reporter.report(
            len(prompts),
            len(prompts),
            numbers={
                "win_rate": result.win_rate,
                "win_rate_low": result.win_rate_low,
                "win_rate_high": result.win_rate_high,
            },
            text=f"the judge prefers the aligned policy on {result.win_rate:.0%} of the held-out prompts",
        )


def _judge(
    run: Run,
    prompts: Sequence[TaskPrompt],
    before: Sequence[Written],
    after: Sequence[Written],
    start: int,
) -> list[judge_pb2.Judgement]:
    """A is the aligned policy's answer; every method of the judge treats both orders alike."""
    items = [
        run.comparison_item(f"evaluation-{start + place}", prompt, new.text, old.text)
        for place, (prompt, old, new) in enumerate(zip(prompts, before, after, strict=True))
    ]
    again = draws(run, EVALUATING, 0)
    seed = derive_seed(run.spec.seed, "evaluation", *([again] if again else []))
    judged = run.services.judge.compare(items, run.judging_options(seed))
    return [judged[item.id] for item in items]


def _evaluation(
    run: Run,
    prompts: Sequence[TaskPrompt],
    before: Sequence[Written],
    after: Sequence[Written],
    judgements: Sequence[judge_pb2.Judgement],
) -> Evaluation:
    probabilities = [one.probability_a if one.HasField("probability_a") else None for one in judgements]
    failures = dict(Counter(one.kind for judgement in judgements if (one := failure_of(judgement)) is not None))
    rates = win_rate(probabilities, samples=run.spec.evaluation.bootstrap_samples, seed=run.spec.seed)
    return Evaluation(
        win_rate=rates.win_rate.value,
        win_rate_low=rates.win_rate.low,
        win_rate_high=rates.win_rate.high,
        mean_probability=rates.mean_probability.value,
        mean_probability_low=rates.mean_probability.low,
        mean_probability_high=rates.mean_probability.high,
        wins=rates.wins,
        ties=rates.ties,
        losses=rates.losses,
        failures=failures,
        mean_tokens_before=mean(answer.tokens for answer in before),
        mean_tokens_after=mean(answer.tokens for answer in after),
        rows=tuple(
            EvaluationRow(
                prompt=prompt.text,
                dimension=prompt.dimension,
                before=old.text,
                after=new.text,
                outcome=enum_name("outcome", judgement.outcome if probability is None else outcome_of(probability)),
                probability_after=probability,
                principles=tuple(one.principle_id for one in judgement.principles),
                before_cut_off=old.cut_off,
                after_cut_off=new.cut_off,
            )
            for prompt, old, new, judgement, probability in zip(
                prompts, before, after, judgements, probabilities, strict=True
            )
        ),
    )
