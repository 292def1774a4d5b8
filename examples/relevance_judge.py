"""A judge of another family: a sentence encoder that prefers the answer whose meaning is closer to the request's.

`charter demo` starts it to measure what a run has learned from a language model's labels. By hand, `make models` first:

    python examples/relevance_judge.py .charter/models/all-minilm-l6-v2 &

It compares by one principle and does nothing else. How good it is: docs/measurements/demo.md.
"""

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import torch
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from transformers import AutoModel, AutoTokenizer

ADDRESS = "127.0.0.1:50055"
PRINCIPLE = judge_pb2.Principle(
    id="keeps-to-the-subject",
    dimension="helpful",
    compare="Which response is closer in meaning to the request?",
    weight=1,
)
# What the encoder was trained to read (Reimers and Gurevych 2019, arXiv 1908.10084).
MOST_TOKENS = 256
TEXTS_AT_ONCE = 32
# Of a difference of two cosines; fitted on labelled pairs of which none is in the demo (docs/measurements/demo.md).
TEMPERATURE = 0.05
# Two servers must not share a port unnoticed.
OPTIONS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0))


class Encoder:
    """Embeds texts: the mean of the last layer over a text's tokens, at length 1."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts, width]; what goes beyond ``MOST_TOKENS`` is not read."""
        found = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = self._tokenizer(
                list(texts[start : start + TEXTS_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            states = self._model(**batch).last_hidden_state
            found.append(torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
        return torch.cat(found)


class RelevanceJudge(judge_pb2_grpc.JudgeServiceServicer):
    """What a comparison calls; rating and writing stay unimplemented."""

    def __init__(self, folder: Path) -> None:
        self._encoder = Encoder(folder)
        self._name = folder.name

    def Compare(
        self, request: judge_pb2.CompareRequest, context: grpc.ServicerContext
    ) -> Iterator[judge_pb2.CompareResponse]:
        """P(A is better) = sigmoid((cos(request, A) - cos(request, B)) / T); an empty answer cannot be judged."""
        items = list(request.items)
        texts = [text for item in items for text in (item.prompt[-1].content, item.answer_a, item.answer_b)]
        if not texts:
            return
        asked, answers_a, answers_b = (self._encoder.embed(texts[place::3]) for place in range(3))
        leads = (asked * (answers_a - answers_b)).sum(dim=1).tolist()
        for item, lead in zip(items, leads, strict=True):
            yield judge_pb2.CompareResponse(item_id=item.id, judgement=self._judgement(item, lead))

    def _judgement(self, item: judge_pb2.ComparisonItem, lead: float) -> judge_pb2.Judgement:
        if not item.answer_a.strip() or not item.answer_b.strip():
            return judge_pb2.Judgement(
                outcome=types_pb2.OUTCOME_INVALID, failure_kind=types_pb2.FAILURE_KIND_EMPTY, model=self._name
            )
        same = item.answer_a == item.answer_b
        probability = 0.5 if same else 1 / (1 + math.exp(-lead / TEMPERATURE))
        outcome = types_pb2.OUTCOME_PREFERRED_A if probability > 0.5 else types_pb2.OUTCOME_PREFERRED_B
        if same:
            outcome = types_pb2.OUTCOME_TIE
        found = types_pb2.PrincipleJudgement(
            principle_id=PRINCIPLE.id, dimension=PRINCIPLE.dimension, outcome=outcome, probability_a=probability
        )
        return judge_pb2.Judgement(outcome=outcome, probability_a=probability, principles=[found], model=self._name)

    def GetModelInfo(
        self, request: judge_pb2.JudgeServiceGetModelInfoRequest, context: grpc.ServicerContext
    ) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """The name of the encoder's folder."""
        return judge_pb2.JudgeServiceGetModelInfoResponse(model=types_pb2.ModelInfo(model=self._name, engine="own"))

    def GetConstitution(
        self, request: judge_pb2.GetConstitutionRequest, context: grpc.ServicerContext
    ) -> judge_pb2.GetConstitutionResponse:
        """The one principle."""
        digest = hashlib.sha256(PRINCIPLE.SerializeToString(deterministic=True)).hexdigest()
        return judge_pb2.GetConstitutionResponse(
            constitution=judge_pb2.Constitution(name="relevance", version="1.0", principles=[PRINCIPLE], digest=digest)
        )


def start(folder: Path, address: str) -> tuple[grpc.Server, int]:
    """Serve at host:port; returns the server and the port that it got."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=OPTIONS)
    judge_pb2_grpc.add_JudgeServiceServicer_to_server(RelevanceJudge(folder), server)
    checks = health.HealthServicer()
    checks.set("charter.v1.JudgeService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


if __name__ == "__main__":
    start(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ADDRESS)[0].wait_for_termination()
