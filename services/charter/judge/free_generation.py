"""PolicyService of the judge's model: it answers as it does when nobody shows it a constitution."""

from charter.generation.servicer import PolicyServicer
from charter.inference.engine import GeneratedSample
from charter.judge import metrics
from charter.v1 import judge_pb2


class FreeGeneration(PolicyServicer):
    """Its tokens are tokens of the judge's model, as those of a judgement."""

    def _sampled(self, sample: GeneratedSample, start: float) -> None:
        prompt_tokens, tokens = sample.usage
        metrics.observe_tokens(judge_pb2.TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=tokens))
