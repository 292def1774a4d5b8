"""Prompts of ``evaluation.compare`` as those of an evaluation."""

from charter.v1 import evaluation_pb2, run_pb2
from charter.worker.stages.compare import evaluated_prompts


def test_every_field_is_taken_over() -> None:
    assert evaluated_prompts(
        run_pb2.ComparedPrompts(source="p.jsonl", dimension="harmless", count=3, kind="look_alike")
    ) == evaluation_pb2.EvaluatedPrompts(
        source="p.jsonl", dimension="harmless", count=3, kind=evaluation_pb2.PROMPT_KIND_LOOK_ALIKE
    )
    plain = evaluated_prompts(run_pb2.ComparedPrompts(source="p.jsonl"))
    assert plain == evaluation_pb2.EvaluatedPrompts(source="p.jsonl")
    fields = {field.name for field in evaluation_pb2.EvaluatedPrompts.DESCRIPTOR.fields}
    assert fields == {field.name for field in run_pb2.ComparedPrompts.DESCRIPTOR.fields}
