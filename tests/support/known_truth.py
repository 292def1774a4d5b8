"""A known truth: an answer is the better, the more of its characters are of a set. Labellers and a judge by it."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from charter.hashing import stable_fraction
from charter.v1 import judge_pb2, judge_pb2_grpc, preference_pb2, types_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.support.bare_server import bare_server
from tests.support.reward_service import Scores

# Logits: an answer of such characters alone against one without.
STEEP = 20.0


def share(characters: str, answer: str) -> float:
    """Of the characters of an answer, 0 to 1; 0 of an empty one."""
    return sum(one in characters for one in answer) / len(answer) if answer else 0.0


def right_scores(characters: str) -> Scores:
    """A scorer that is always right."""

    def scores(request: preference_pb2.PreferenceServiceScoreRequest) -> Iterator[tuple[str, float]]:
        return ((item.id, STEEP * share(characters, item.answer)) for item in request.items)

    return scores


def noise(request: preference_pb2.PreferenceServiceScoreRequest) -> Iterator[tuple[str, float]]:
    """A scorer that says something of every answer, always the same, and knows nothing."""
    return ((item.id, 4 * stable_fraction("noise", item.answer)) for item in request.items)


class RightJudge(judge_pb2_grpc.JudgeServiceServicer):
    """What a comparison calls of a judge."""

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._principles = [
            judge_pb2.Principle(id=f"truth-{dimension}", dimension=dimension, compare="Which has more?", weight=1)
            for dimension in ("helpful", "harmless")
        ]

    def Compare(
        self, request: judge_pb2.CompareRequest, context: grpc.ServicerContext
    ) -> Iterator[judge_pb2.CompareResponse]:
        """P(A is better) = sigmoid(STEEP * (share of A - share of B))."""
        for item in request.items:
            lead = share(self._characters, item.answer_a) - share(self._characters, item.answer_b)
            probability = 1 / (1 + math.exp(-STEEP * lead))
            outcome = types_pb2.OUTCOME_TIE
            if lead:
                outcome = types_pb2.OUTCOME_PREFERRED_A if lead > 0 else types_pb2.OUTCOME_PREFERRED_B
            found = types_pb2.PrincipleJudgement(
                principle_id=f"truth-{item.dimension}",
                dimension=item.dimension,
                outcome=outcome,
                probability_a=probability,
            )
            judgement = judge_pb2.Judgement(
                outcome=outcome, probability_a=probability, principles=[found], model="truth"
            )
            yield judge_pb2.CompareResponse(item_id=item.id, judgement=judgement)

    def GetModelInfo(
        self, request: judge_pb2.JudgeServiceGetModelInfoRequest, context: grpc.ServicerContext
    ) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """Its name."""
        return judge_pb2.JudgeServiceGetModelInfoResponse(model=types_pb2.ModelInfo(model="truth", engine="own"))

    def GetConstitution(
        self, request: judge_pb2.GetConstitutionRequest, context: grpc.ServicerContext
    ) -> judge_pb2.GetConstitutionResponse:
        """One principle of each dimension."""
        digest = hashlib.sha256(self._characters.encode()).hexdigest()
        constitution = judge_pb2.Constitution(name="truth", version="1", principles=self._principles, digest=digest)
        return judge_pb2.GetConstitutionResponse(constitution=constitution)


@contextmanager
def right_judge(characters: str) -> Iterator[str]:
    """Address of a judge service that is always right."""
    # What it leaves out answers UNIMPLEMENTED.
    judge = RightJudge(characters)  # type: ignore[abstract]

    def register(server: grpc.Server) -> None:
        judge_pb2_grpc.add_JudgeServiceServicer_to_server(judge, server)
        checks = health.HealthServicer()
        checks.set("charter.v1.JudgeService", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)

    with bare_server(register) as address:
        yield address
