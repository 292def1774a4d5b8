"""The preference service as the worker sees it: waited for when it is away, and brought up to date when it is back."""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import grpc
import torch

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.sender import WeightUpdate, send_weights
from charter.worker.clients.failed import Failed, failed, unsendable
from charter.worker.clients.sleeper import send_to_sleep, wake_at_the_end, wake_up
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter

logger = logging.getLogger("charter.worker")

V = TypeVar("V")

# Between two attempts to reach a service that is away, at most.
_MOST_PAUSE_SECONDS = 10.0


class PreferenceClient:
    """One method for each thing that the worker asks of the service, errors worded for a person.

    A service that cannot be reached, as in a rolling update, is waited for: the run says so in its events, and goes on
    when it is there or stops when asked to. If it came back without weights, it is given those that it had before
    anything else is asked of it. With ``sleeps`` it shares the worker's GPU, and is woken before it has to score.
    """

    def __init__(self, address: str, control_address: str, reporter: Reporter, *, sleeps: bool = False) -> None:
        self.address = address
        self._control_address = control_address
        self._reporter = reporter
        self._open()
        # An attempt that died may have left it asleep.
        self._may_sleep = sleeps
        self._send_again: Callable[[], object] | None = None

    def close(self) -> None:
        """Wake it, and close the channel."""
        if self._may_sleep and (problem := wake_at_the_end("preference", self._control_address)):
            logger.warning("left asleep", extra={"service": "preference", "reason": problem})
        self._channel.close()

    def sleep(self) -> None:
        """Free its GPU memory until it has to score. Raises ``ServiceError`` when it cannot."""
        self._may_sleep = True
        send_to_sleep("preference", self._control_address)

    def _wake(self) -> None:
        wake_up("preference", self._control_address)
        self._may_sleep = False

    def info(self) -> types_pb2.ModelInfo:
        """The preference model that is served."""
        return self._patiently(self._info)

    def check_control_port(self) -> None:
        """Raise ``ServiceError`` unless weights could be sent."""
        with explained("preference weight", self._control_address), connect(self._control_address) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=QUICK)

    def add_comparisons(self, request_id: str, comparisons: Sequence[types_pb2.Comparison]) -> None:
        """Store comparisons, all or none; repeating a request id stores nothing."""
        request = preference_pb2.AddComparisonsRequest(request_id=request_id, comparisons=comparisons)
        self._patiently(lambda: self._stub.AddComparisons(request, timeout=BATCH))

    def comparisons(
        self, run_id: str = "", source: types_pb2.LabelSource.ValueType = types_pb2.LABEL_SOURCE_UNSPECIFIED
    ) -> Iterator[types_pb2.Comparison]:
        """Stored comparisons of a run (empty = of all), and of a source, oldest first."""
        chosen, cursor = preference_pb2.ComparisonFilter(run_id=run_id, source=source), ""
        while True:
            request = preference_pb2.StreamComparisonsRequest(filter=chosen, after_cursor=cursor)
            try:
                with explained("preference", self.address):
                    for page in self._stub.StreamComparisons(request, timeout=BATCH):
                        yield from page.comparisons
                        cursor = page.cursor
                return
            except ServiceError as error:
                self._wait_for_return(error)

    def count_labels(self, source: types_pb2.LabelSource.ValueType) -> int:
        """How many comparisons with a label a source has stored."""
        request = preference_pb2.GetStatsRequest(
            filter=preference_pb2.ComparisonFilter(source=source, labelled_only=True)
        )
        return int(self._patiently(lambda: self._stub.GetStats(request, timeout=QUICK)).total)

    def score(self, items: Sequence[tuple[Sequence[ChatMessage], str]], version: int) -> list[float | Failed]:
        """Preference score of each (prompt, answer), or why there is none.

        Raises ``ServiceError`` when the call fails, ``RunError`` for scores of another version.
        """
        if self._may_sleep:
            self._patiently(self._wake)
        found = self._patiently(lambda: scores_of("preference", self.address, self._stub, items, version))
        others = {one.weight_version for one in found if not isinstance(one, Failed)} - {version}
        if others:
            raise RunError(
                f"the preference service at {self.address} scored with version {sorted(others)}, this run "
                f"sent version {version}: something else sends weights to it. Stop that, then resume the run"
            )
        return [one if isinstance(one, Failed) else one.score for one in found]

    def send(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightUpdate:
        """Serve a preference model, whatever was served before."""
        return send_weights(self._control_address, tensors, version, service="preference", force=True)

    def when_without_weights(self, send_again: Callable[[], object]) -> None:
        """From now on ``send_again`` is called when the service has come back without weights."""
        self._send_again = send_again

    def _patiently(self, call: Callable[[], V]) -> V:
        while True:
            try:
                with explained("preference", self.address):
                    return call()
            except ServiceError as error:
                self._wait_for_return(error)

    def _wait_for_return(self, error: ServiceError) -> None:
        """Return when a service that was away is back, with its weights; raises the error that no waiting can mend."""
        # Without weights since it restarted is mended here; before the run has sent any, it is an error.
        mended = error.code is grpc.StatusCode.FAILED_PRECONDITION and self._send_again is not None
        if error.code is not grpc.StatusCode.UNAVAILABLE and not mended:
            raise error
        pause = 1.0
        while True:
            try:
                without_weights = self._fresh_info().weight_version == 0
                if error.code is grpc.StatusCode.FAILED_PRECONDITION and not without_weights:
                    raise error
                if without_weights and self._send_again is not None:
                    self._send_again()
                return
            except ServiceError as problem:
                if problem.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                text = f"waiting: {problem} The run goes on when it is back."
                self._reporter.report(0, 0, text=text)
            self._reporter.raise_if_stopped()
            time.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)

    def _fresh_info(self) -> types_pb2.ModelInfo:
        """What is served, by a new channel: a used one waits longer and longer before it looks for a server again."""
        self._channel.close()
        self._open()
        with explained("preference", self.address):
            return self._info()

    def _open(self) -> None:
        self._channel = connect(self.address)
        self._stub = preference_pb2_grpc.PreferenceServiceStub(self._channel)

    def _info(self) -> types_pb2.ModelInfo:
        request = preference_pb2.PreferenceServiceGetModelInfoRequest()
        return self._stub.GetModelInfo(request, timeout=QUICK).model


def scores_of(
    service: str,
    address: str,
    stub: preference_pb2_grpc.PreferenceServiceStub,
    items: Sequence[tuple[Sequence[ChatMessage], str]],
    version: int = 0,
    model: str = "",
) -> list[preference_pb2.PreferenceServiceScoreResponse | Failed]:
    """The score of each (prompt, answer), in their order, by a service with ``Score``; or why it has none.

    Items that the service refuses by name are left out, and the rest is asked for again. Raises ``ServiceError`` when
    the call fails.

    Args:
        service: what it is called in errors, and ``address``, where it is.
        stub: of the service.
        items: prompts and answers.
        version: the least weight version that may score.
        model: name of the model; empty = the service's first.
    """
    asked = [
        preference_pb2.ScoreItem(id=str(index), prompt=proto_messages(prompt), answer=answer)
        for index, (prompt, answer) in enumerate(items)
    ]
    found: dict[str, preference_pb2.PreferenceServiceScoreResponse | Failed] = {
        item.id: failure for item in asked if (failure := unsendable(item)) is not None
    }
    while waiting := [item for item in asked if item.id not in found]:
        request = preference_pb2.PreferenceServiceScoreRequest(
            items=waiting, required_weight_version=version, model=model
        )
        try:
            with explained(service, address):
                for response in stub.Score(request, timeout=BATCH):
                    found[response.item_id] = response if math.isfinite(response.score) else _not_finite(response)
        except ServiceError as error:
            refused = _refused(error, waiting)
            if not refused:
                raise
            found |= refused
        else:
            missing = failed(types_pb2.FAILURE_KIND_MISSING, f"the {service} service at {address} left it out")
            for item in waiting:
                found.setdefault(item.id, missing)
    return [found[item.id] for item in asked]


def _not_finite(response: preference_pb2.PreferenceServiceScoreResponse) -> Failed:
    return failed(types_pb2.FAILURE_KIND_UNCLEAR, f"its score is {response.score}")


def _refused(error: ServiceError, items: Sequence[preference_pb2.ScoreItem]) -> dict[str, Failed]:
    """The items that were refused, by id; none unless single items are all that is wrong with a request."""
    if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
        return {}
    found: dict[str, Failed] = {}
    for one in error.violations:
        place = re.match(r"items\[(\d+)\]", one.field)
        if place is None or int(place[1]) >= len(items):
            return {}
        kinds = types_pb2.FailureKind.DESCRIPTOR.values_by_name
        kind = f"FAILURE_KIND_{one.reason}" if f"FAILURE_KIND_{one.reason}" in kinds else "FAILURE_KIND_REFUSED"
        found[items[int(place[1])].id] = failed(types_pb2.FailureKind.Value(kind), one.description)
    return found
