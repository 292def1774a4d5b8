"""The worker's client of the preference service, against one that is overloaded, breaks off, or comes back empty."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from charter.chat import ChatMessage
from charter.rpc.errors import ServiceError, StatusError
from charter.runs.artifacts import Artifacts
from charter.v1 import preference_pb2, preference_pb2_grpc, run_pb2, types_pb2, weights_pb2, weights_pb2_grpc
from charter.worker.clients.preference import PreferenceClient
from charter.worker.reporter import Reporter

ITEMS = [((ChatMessage("user", f"Say {n}."),), str(n)) for n in range(4)]
UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED

# Ends a call with a status; RESOURCE_EXHAUSTED says when to come again.
Fault = grpc.StatusCode


class Service(preference_pb2_grpc.PreferenceServiceServicer, weights_pb2_grpc.WeightServiceServicer):
    """Scores an answer by its number. ``faults`` are those of the calls to come, each after so many responses."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, Fault]] = []
        self.asked: list[list[str]] = []
        self.version = 1

    def _fail(self, context: grpc.ServicerContext, code: Fault) -> None:
        context.abort_with_status(StatusError(code, "not now", 0.001 if code is EXHAUSTED else None).to_status())

    def Score(
        self, request: preference_pb2.PreferenceServiceScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[preference_pb2.PreferenceServiceScoreResponse]:
        self.asked.append([item.answer for item in request.items])
        after, code = self.faults.pop(0) if self.faults else (len(ITEMS), None)
        if self.version < request.required_weight_version:
            self._fail(context, grpc.StatusCode.FAILED_PRECONDITION)
        for place, item in enumerate(request.items):
            if place == after and code is not None:
                self._fail(context, code)
            yield preference_pb2.PreferenceServiceScoreResponse(
                item_id=item.id, score=float(item.answer), weight_version=self.version
            )

    def StreamComparisons(
        self, request: preference_pb2.StreamComparisonsRequest, context: grpc.ServicerContext
    ) -> Iterator[preference_pb2.StreamComparisonsResponse]:
        after, code = self.faults.pop(0) if self.faults else (len(ITEMS), None)
        for sent, place in enumerate(range(int(request.after_cursor or 0), len(ITEMS))):
            if sent == after and code is not None:
                self._fail(context, code)
            yield preference_pb2.StreamComparisonsResponse(
                comparisons=[types_pb2.Comparison(id=str(place))], cursor=str(place + 1)
            )

    def GetModelInfo(
        self, request: preference_pb2.PreferenceServiceGetModelInfoRequest, context: grpc.ServicerContext
    ) -> preference_pb2.PreferenceServiceGetModelInfoResponse:
        return preference_pb2.PreferenceServiceGetModelInfoResponse(
            model=types_pb2.ModelInfo(weight_version=self.version)
        )

    def GetWeightVersion(
        self, request: weights_pb2.GetWeightVersionRequest, context: grpc.ServicerContext
    ) -> weights_pb2.GetWeightVersionResponse:
        if self.faults:
            self._fail(context, self.faults.pop(0)[1])
        return weights_pb2.GetWeightVersionResponse()

    def LoadWeights(
        self, requests: Iterator[weights_pb2.LoadWeightsRequest], context: grpc.ServicerContext
    ) -> weights_pb2.LoadWeightsResponse:
        header = next(requests).header
        for _ in requests:
            pass
        if self.faults:
            self._fail(context, self.faults.pop(0)[1])
        self.version = header.version
        return weights_pb2.LoadWeightsResponse()


def new_service() -> Service:
    # What it leaves out answers UNIMPLEMENTED.
    return Service()  # type: ignore[abstract]


@contextmanager
def served(service: Service, folder: Path) -> Iterator[tuple[PreferenceClient, Reporter]]:
    with ExitStack() as stack:
        server = grpc.server(stack.enter_context(ThreadPoolExecutor(4)))
        preference_pb2_grpc.add_PreferenceServiceServicer_to_server(service, server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(service, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        stack.callback(lambda: server.stop(0).wait())
        reporter = stack.enter_context(closing(Reporter(Artifacts(folder, "r"), "r", 1, "")))
        addresses = run_pb2.ServiceAddresses(preference=address, preference_control=address)
        client = PreferenceClient(addresses, reporter, max_wait_seconds=60, sleeps=False)
        yield stack.enter_context(closing(client)), reporter


def test_an_overloaded_service_is_asked_again_when_it_said(tmp_path: Path) -> None:
    service = new_service()
    service.faults = [(0, EXHAUSTED)] * 5
    with served(service, tmp_path) as (client, _):
        assert client.score(ITEMS, 1) == [0, 1, 2, 3]
    assert service.asked == [["0", "1", "2", "3"]] * 6


def test_scores_that_came_before_a_fault_are_kept(tmp_path: Path) -> None:
    service = new_service()
    service.faults = [(2, EXHAUSTED), (1, UNAVAILABLE)]
    with served(service, tmp_path) as (client, _):
        assert client.score(ITEMS, 1) == [0, 1, 2, 3]
    assert service.asked == [["0", "1", "2", "3"], ["2", "3"], ["3"]]


def test_a_service_that_comes_back_without_weights_gets_them_before_it_is_asked_again(tmp_path: Path) -> None:
    service = new_service()
    with served(service, tmp_path) as (client, _):
        client.send({"w": torch.ones(1)}, 2)
        client.when_without_weights(lambda: client.send({"w": torch.ones(1)}, 2))
        assert client.score(ITEMS, 2) == [0, 1, 2, 3]
        service.version = 0
        # The first try to send them fails too.
        service.faults = [(0, EXHAUSTED), (0, EXHAUSTED)]
        assert client.score(ITEMS, 2) == [0, 1, 2, 3]
    assert service.version == 2


def test_before_weights_were_sent_their_absence_is_an_error(tmp_path: Path) -> None:
    with served(new_service(), tmp_path) as (client, _), pytest.raises(ServiceError, match="FAILED_PRECONDITION"):
        client.score(ITEMS, 7)


def test_a_page_is_read_once_however_often_the_stream_breaks(tmp_path: Path) -> None:
    service = new_service()
    service.faults = [(1, EXHAUSTED), (2, EXHAUSTED)]
    with served(service, tmp_path) as (client, _):
        assert [one.id for one in client.comparisons()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.check_control_port(),
        lambda client: client.send({"w": torch.ones(1)}, 3),
    ],
    ids=["check_control_port", "send"],
)
def test_the_control_port_is_waited_for_too(tmp_path: Path, ask: Callable[[PreferenceClient], object]) -> None:
    service = new_service()
    service.faults = [(0, EXHAUSTED), (0, EXHAUSTED)]
    with served(service, tmp_path) as (client, _):
        ask(client)
    assert service.faults == []
