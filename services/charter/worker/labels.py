"""A judgement of two answers as the comparison that is stored: every label can then be audited."""

from charter.data.prompts import TaskPrompt
from charter.outcomes import outcome_of
from charter.rpc.messages import proto_messages
from charter.storage.comparisons import method_name
from charter.v1 import judge_pb2, types_pb2
from charter.worker.context import Run


def label_of(
    run: Run,
    prompt: TaskPrompt,
    answer_a: types_pb2.Answer,
    answer_b: types_pb2.Answer,
    judgement: judge_pb2.Judgement,
    *,
    held_out: bool = False,
) -> types_pb2.Comparison:
    """The comparison of two of the policy's answers, a failed one too.

    Its outcome is that of the probability where there is one.
    """
    comparison = types_pb2.Comparison(
        prompt=proto_messages(prompt.messages),
        answer_a=answer_a,
        answer_b=answer_b,
        run_id=run.id,
        split=types_pb2.SPLIT_HELD_OUT if held_out else types_pb2.SPLIT_TRAIN,
        dimension=prompt.dimension,
    )
    add_judgement(comparison, judgement)
    return comparison


def add_judgement(comparison: types_pb2.Comparison, judgement: judge_pb2.Judgement) -> None:
    """Write into a comparison without a label what a judge said of it, in place."""
    comparison.source = types_pb2.LABEL_SOURCE_AI
    comparison.labeller = judgement.model
    comparison.outcome = judgement.outcome
    comparison.judgements.extend(judgement.principles)
    comparison.method = method_name(judgement)
    comparison.constitution_digest = judgement.constitution_digest
    if judgement.HasField("probability_a"):
        comparison.probability_a = judgement.probability_a
        comparison.outcome = outcome_of(judgement.probability_a)
