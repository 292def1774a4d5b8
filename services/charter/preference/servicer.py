"""PreferenceService on top of the store and the models."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator

import grpc

from charter.preference import metrics
from charter.preference.models import PreferenceModels
from charter.preference.scorer import OverloadedError, ScoreInput, Scorer, UnusableInputsError
from charter.preference.store import ComparisonStore
from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.gate import Gate
from charter.rpc.messages import chat_messages
from charter.rpc.validation import MOST_VIOLATIONS, Violation
from charter.storage.comparisons import enum_name
from charter.v1 import preference_pb2, preference_pb2_grpc
from charter.weights.receiver import model_info

logger = logging.getLogger("charter.preference")

# A score costs milliseconds to tens of milliseconds: a full queue has room again after about this long.
_RETRY_SECONDS = 5.0


class PreferenceServicer(preference_pb2_grpc.PreferenceServiceServicer):
    """Each RPC by its contract in ``preference.proto``."""

    def __init__(self, store: ComparisonStore, models: PreferenceModels, gate: Gate) -> None:
        self._store = store
        self._models = models
        self._gate = gate

    async def AddComparisons(
        self, request: preference_pb2.AddComparisonsRequest, context: grpc.aio.ServicerContext
    ) -> preference_pb2.AddComparisonsResponse:
        """Store all of a request, or nothing."""
        added = await asyncio.to_thread(self._store.add, request.request_id, request.comparisons)
        for (outcome, source), count in added.stored.items():
            metrics.ADDED.labels(outcome.lower(), source.lower()).inc(count)
        if not added.repeated:
            metrics.DUPLICATES.inc(added.duplicates)
        return preference_pb2.AddComparisonsResponse(added=added.added, duplicates=added.duplicates, ids=added.ids)

    async def RemoveComparisons(
        self, request: preference_pb2.RemoveComparisonsRequest, context: grpc.aio.ServicerContext
    ) -> preference_pb2.RemoveComparisonsResponse:
        """Undo of one labeller."""
        source = enum_name("source", request.source)
        removed = await asyncio.to_thread(self._store.remove, request.ids, source, request.labeller)
        logger.info("comparisons removed", extra={"labeller": request.labeller, "source": source, "removed": removed})
        return preference_pb2.RemoveComparisonsResponse(removed=removed)

    async def StreamComparisons(
        self, request: preference_pb2.StreamComparisonsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[preference_pb2.StreamComparisonsResponse]:
        """Pages up to what is stored at the start, so that the stream ends while others write."""
        cursor = _cursor(request.after_cursor)
        newest = await asyncio.to_thread(self._store.newest)
        while page := await asyncio.to_thread(self._store.page, request.filter, cursor, newest):
            cursor = page.cursor
            yield preference_pb2.StreamComparisonsResponse(comparisons=page.comparisons, cursor=str(cursor))

    async def GetStats(
        self, request: preference_pb2.GetStatsRequest, context: grpc.aio.ServicerContext
    ) -> preference_pb2.GetStatsResponse:
        """Counts of what is stored."""
        return await asyncio.to_thread(self._store.stats, request.filter)

    async def Score(
        self, request: preference_pb2.PreferenceServiceScoreRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[preference_pb2.PreferenceServiceScoreResponse]:
        """Scores as they are finished."""
        ids = [item.id for item in request.items]
        _refuse_repeated(ids)
        scorer = self._models.named(request.model)
        _require_version(scorer, request.required_weight_version)
        inputs = [ScoreInput(chat_messages(item.prompt), item.answer) for item in request.items]
        try:
            with self._gate.call():
                async for score in scorer.score(inputs):
                    if not math.isfinite(score.value):
                        raise StatusError(
                            grpc.StatusCode.INTERNAL,
                            f"item {ids[score.index]!r} scores {score.value}: weight version {score.weight_version} is "
                            "broken; fit the preference model again, or send another version",
                        )
                    yield preference_pb2.PreferenceServiceScoreResponse(
                        item_id=ids[score.index],
                        score=score.value,
                        weight_version=score.weight_version,
                        member_scores=score.members if request.member_scores else (),
                    )
        except UnusableInputsError as error:
            refused = [
                Violation(f"items[{index}]", f"{ids[index]!r} {problem}", reason)
                for index, problem, reason in error.problems[:MOST_VIOLATIONS]
            ]
            raise invalid_fields(refused) from error
        except OverloadedError as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many answers wait to be scored", _RETRY_SECONDS
            ) from error

    async def GetModelInfo(
        self, request: preference_pb2.PreferenceServiceGetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> preference_pb2.PreferenceServiceGetModelInfoResponse:
        """What is served."""
        return preference_pb2.PreferenceServiceGetModelInfoResponse(
            model=model_info(self._models.first.info()),
            models=[
                preference_pb2.NamedModel(name=name, model=model_info(scorer.info()), fitted=scorer.fitted)
                for name, scorer in self._models.all().items()
            ],
        )


def _require_version(scorer: Scorer, required: int) -> None:
    if not scorer.fitted:
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "no preference model was fitted yet: a run (`charter run`) fits one and sends its weights here, or "
            "start this service with the preference_model folder of an earlier run",
        )
    served = scorer.info().weight_version
    if served < required:
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION, f"weight version {required} is required, {served} is served"
        )


def _cursor(text: str) -> int:
    """0 for the start. Raises INVALID_ARGUMENT for anything that no page ended with."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid_fields([Violation("after_cursor", f"{text!r} is not a cursor of StreamComparisons")])
    return int(text)


def _refuse_repeated(ids: list[str]) -> None:
    seen: dict[str, int] = {}
    for index, one in enumerate(ids):
        if seen.setdefault(one, index) != index:
            raise invalid_fields([Violation(f"items[{index}].id", f"{one!r} is also the id of items[{seen[one]}]")])
