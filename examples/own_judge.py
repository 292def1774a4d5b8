"""A judge of your own: any server that speaks charter.v1.JudgeService can label pairs and rate answers.

This one prefers the answer that uses more of the words of the question. Start it with `python examples/own_judge.py`
and name its address in a run spec (docs/judge.md).
"""

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME = "word-overlap"
PRINCIPLE = "uses-the-words-of-the-question"


def quality(prompt: str, answer: str) -> float:
    """Share of the question's words that the answer uses: replace this by your own scorer."""
    asked, used = (set(re.findall(r"\w+", text.lower())) for text in (prompt, answer))
    return len(asked & used) / len(asked) if asked else 0.0


class OwnJudge(judge_pb2_grpc.JudgeServiceServicer):
    """What a run calls; Critique and Revise may stay unimplemented."""

    def Compare(
        self, request: judge_pb2.CompareRequest, context: grpc.ServicerContext
    ) -> Iterator[judge_pb2.CompareResponse]:
        """Label pairs. A pair that cannot be judged gets OUTCOME_INVALID and no probability."""
        for item in request.items:
            prompt = item.prompt[-1].content
            difference = quality(prompt, item.answer_a) - quality(prompt, item.answer_b)
            probability = 1 / (1 + math.exp(-4 * difference))
            outcome = types_pb2.OUTCOME_TIE if difference == 0 else types_pb2.OUTCOME_PREFERRED_A
            if difference < 0:
                outcome = types_pb2.OUTCOME_PREFERRED_B
            found = types_pb2.PrincipleJudgement(principle_id=PRINCIPLE, outcome=outcome, probability_a=probability)
            yield judge_pb2.CompareResponse(
                item_id=item.id,
                judgement=judge_pb2.Judgement(
                    outcome=outcome, probability_a=probability, principles=[found], model=NAME
                ),
            )

    def Score(
        self, request: judge_pb2.JudgeServiceScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[judge_pb2.JudgeServiceScoreResponse]:
        """Rate answers from -1 to 1."""
        for item in request.items:
            score = 2 * quality(item.prompt[-1].content, item.answer) - 1
            yield judge_pb2.JudgeServiceScoreResponse(item_id=item.id, rated=True, score=score, principle_id=PRINCIPLE)

    def GetModelInfo(
        self, request: judge_pb2.JudgeServiceGetModelInfoRequest, context: grpc.ServicerContext
    ) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """The name must be that of `judge.model` in the spec."""
        return judge_pb2.JudgeServiceGetModelInfoResponse(model=types_pb2.ModelInfo(model=NAME, engine="own"))

    def GetConstitution(
        self, request: judge_pb2.GetConstitutionRequest, context: grpc.ServicerContext
    ) -> judge_pb2.GetConstitutionResponse:
        """Empty: this judge needs none."""
        return judge_pb2.GetConstitutionResponse(constitution=judge_pb2.Constitution(name=NAME))


def start(address: str) -> tuple[grpc.Server, int]:
    """Serve at host:port; returns the server and the port that it got."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.max_receive_message_length", 64 << 20)])
    judge_pb2_grpc.add_JudgeServiceServicer_to_server(OwnJudge(), server)
    # `charter run` and `charter status` ask for this before they begin.
    checks = health.HealthServicer()
    checks.set("charter.v1.JudgeService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


if __name__ == "__main__":
    start("127.0.0.1:50052")[0].wait_for_termination()
