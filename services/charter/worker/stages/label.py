"""Lets the judge label the sampled pairs and stores every label, failed ones too."""

import json
from collections import Counter
from collections.abc import Sequence

from charter.held_out import held_out_of
from charter.jsonl import append_line, recover_lines
from charter.outcomes import outcome_of
from charter.rpc.messages import proto_messages
from charter.storage.comparisons import enum_name, method_name
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker import metrics
from charter.worker.context import STARTING_VERSION, Run
from charter.worker.errors import RunError
from charter.worker.prompts import take
from charter.worker.seeds import derive_seed
from charter.worker.stages.sample_pairs import Pair, Written, judged_prompts


def label_pairs(run: Run, batches: list[list[Pair]]) -> None:
    """Judge and store each batch. Its request id is the same in every attempt, so that nothing is stored twice."""
    total = sum(len(batch) for batch in batches)
    finished = [json.loads(line) for line in recover_lines(run.artifacts.labels)]
    if len(finished) < len(batches):
        held_out = held_out_keys(run)
        with run.reporter.in_phase(run_pb2.PHASE_JUDGING):
            for index in range(len(finished), len(batches)):
                run.reporter.raise_if_stopped()
                outcomes = store_labels(run, str(index), batches[index], held_out, STARTING_VERSION)
                append_line(run.artifacts.labels, json.dumps(outcomes))
                finished.append(outcomes)
                done = sum((Counter(one) for one in finished), Counter())
                run.reporter.report(done.total(), total, numbers={f"outcome_{name}": n for name, n in done.items()})
    done = sum((Counter(one) for one in finished), Counter())
    run.artifacts.count(**{f"labels_{name.lower()}": count for name, count in done.items()})


def held_out_keys(run: Run) -> set[str]:
    """Keys of the prompts whose comparisons, of the first pairs and of every refresh, are held out from all fits.

    A share of the prompts of the first pairs, then of those that each refresh adds, by ``held_out_of``: either part has
    some of each, and which they are depends on the spec and the prompts alone.
    """
    spec, judged = run.spec.comparisons, judged_prompts(run)
    refreshes = run.spec.ppo.steps // spec.refresh_every_steps if spec.HasField("refresh_every_steps") else 0
    held_out: set[str] = set()
    decided: set[str] = set()
    taken = 0
    for pairs in (spec.pairs, *[spec.refresh_pairs] * refreshes):
        if not judged or len(decided) == len(judged):
            break
        new = {prompt.key for prompt in take(judged, taken, pairs, run.spec.seed)} - decided
        held_out |= held_out_of(new, spec.held_out_fraction)
        decided |= new
        taken += pairs
    return held_out


def store_labels(run: Run, name: str, pairs: Sequence[Pair], held_out: set[str], version: int) -> dict[str, int]:
    """Have pairs judged and stored, and count them by outcome.

    Args:
        name: of these pairs in this run; what is stored under it already stays as it is.
        pairs: written by the policy's weights ``version``.
        held_out: keys of the prompts whose comparisons are held out.
    """
    if not pairs:
        return {}
    items = [
        run.comparison_item(f"pair-{name}-{place}", pair.prompt, pair.answer_a.text, pair.answer_b.text)
        for place, pair in enumerate(pairs)
    ]
    judged = run.services.judge.compare(items, run.judging_options(derive_seed(run.spec.seed, "labels")))
    if all(one.outcome == types_pb2.OUTCOME_UNAVAILABLE for one in judged.values()):
        # An outage, not a property of these pairs: nothing is stored, so that a resumed run asks about them again.
        reason = next(principle.failure for one in judged.values() for principle in one.principles)
        raise RunError(f"the judge's model cannot be reached: {reason}. Resume the run when it can")
    comparisons = [
        _comparison(run, pair, judged[item.id], pair.prompt.key in held_out, version)
        for pair, item in zip(pairs, items, strict=True)
    ]
    run.services.preference.add_comparisons(f"{run.id}-labels-{name}", comparisons)
    outcomes = Counter(enum_name("outcome", comparison.outcome) for comparison in comparisons)
    for name, count in outcomes.items():
        metrics.PAIRS.labels(run.id, name.lower()).inc(count)
    return dict(outcomes)


def _comparison(
    run: Run, pair: Pair, judgement: judge_pb2.Judgement, held_out: bool, version: int
) -> types_pb2.Comparison:
    comparison = types_pb2.Comparison(
        prompt=proto_messages(pair.prompt.messages),
        answer_a=_written(run, pair.answer_a, version),
        answer_b=_written(run, pair.answer_b, version),
        source=types_pb2.LABEL_SOURCE_AI,
        labeller=judgement.model,
        outcome=judgement.outcome,
        judgements=judgement.principles,
        method=method_name(judgement),
        constitution_digest=judgement.constitution_digest,
        run_id=run.id,
        split=types_pb2.SPLIT_HELD_OUT if held_out else types_pb2.SPLIT_TRAIN,
        dimension=pair.prompt.dimension,
    )
    if judgement.HasField("probability_a"):
        comparison.probability_a = judgement.probability_a
        comparison.outcome = outcome_of(judgement.probability_a)
    return comparison


def _written(run: Run, answer: Written, version: int) -> types_pb2.Answer:
    return types_pb2.Answer(
        text=answer.text, model=run.spec.policy.model, weight_version=version, cut_off=answer.cut_off
    )
