"""Somebody's own reward service: it speaks PreferenceService.Score and nothing else."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import grpc
from charter.rpc.errors import StatusError
from charter.v1 import preference_pb2

from tests.support.bare_server import bare_server

# (item id, score) of each item that it answers for.
Scores = Callable[[preference_pb2.PreferenceServiceScoreRequest], Iterable[tuple[str, float]]]


@contextmanager
def reward_service(scores: Scores) -> Iterator[str]:
    """Address of a service that answers each request with ``scores``, or with the ``StatusError`` that they raise."""

    def score(
        request: preference_pb2.PreferenceServiceScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[preference_pb2.PreferenceServiceScoreResponse]:
        try:
            found = scores(request)
        except StatusError as error:
            context.abort_with_status(error.to_status())
        for item, number in found:
            yield preference_pb2.PreferenceServiceScoreResponse(item_id=item, score=number, weight_version=77)

    # It speaks Score and nothing else of the service.
    method = grpc.unary_stream_rpc_method_handler(
        score,
        request_deserializer=preference_pb2.PreferenceServiceScoreRequest.FromString,
        response_serializer=preference_pb2.PreferenceServiceScoreResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("charter.v1.PreferenceService", {"Score": method})
    with bare_server(lambda server: server.add_generic_rpc_handlers((handler,))) as address:
        yield address
