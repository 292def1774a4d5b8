"""The preference service as the worker sees it: waited for when it is away, and brought up to date when it is back."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import grpc
import torch

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.stalled import unless_stalled
from charter.v1 import preference_pb2, preference_pb2_grpc, run_pb2, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.sender import WeightUpdate, pack_weights, send_packed
from charter.worker.clients.failed import Failed
from charter.worker.clients.patience import AWAY, Patience
from charter.worker.clients.scoring import Scores, add_scores, in_order
from charter.worker.clients.sleeper import send_to_sleep, wake_at_the_end, wake_up
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter

logger = logging.getLogger("charter.worker")

V = TypeVar("V")


class PreferenceClient:
    """One method for each thing that the worker asks of the service, errors worded for a person.

    A service that cannot be reached, as in a rolling update, or has too much to do, is waited for: the run says so in
    its events, and goes on when it is there or stops when asked to, or after ``max_wait_seconds``. If it came back
    without weights, it is given those that it had before anything else is asked of it. With ``sleeps`` it shares the
    worker's GPU, and is woken before it has to score.
    """

    def __init__(
        self, addresses: run_pb2.ServiceAddresses, reporter: Reporter, *, max_wait_seconds: float, sleeps: bool
    ) -> None:
        self.address = addresses.preference
        self._control_address = addresses.preference_control
        self._reporter = reporter
        self._max_wait_seconds = max_wait_seconds
        self._open()
        # It was away: it may be without weights, and a used channel waits longer and longer before it looks again.
        self._lost = False
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

        def ask() -> None:
            with explained("preference weight", self._control_address), connect(self._control_address) as channel:
                stub = weights_pb2_grpc.WeightServiceStub(channel)
                stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=QUICK)

        self._until_done(ask)

    def add_comparisons(self, request_id: str, comparisons: Sequence[types_pb2.Comparison]) -> None:
        """Store comparisons, all or none; repeating a request id stores nothing."""
        request = preference_pb2.AddComparisonsRequest(request_id=request_id, comparisons=comparisons)
        self._patiently(lambda: self._stub.AddComparisons(request, timeout=BATCH))

    def comparisons(
        self,
        run_id: str = "",
        source: types_pb2.LabelSource.ValueType = types_pb2.LABEL_SOURCE_UNSPECIFIED,
        dimension: str = "",
    ) -> Iterator[types_pb2.Comparison]:
        """Stored comparisons of a run (empty = of all), of a source and of a dimension, oldest first."""
        chosen, cursor = preference_pb2.ComparisonFilter(run_id=run_id, source=source, dimension=dimension), ""
        patience = self._patience()
        while True:
            request = preference_pb2.StreamComparisonsRequest(filter=chosen, after_cursor=cursor)
            try:
                self._return()
                with explained("preference", self.address):
                    for page in unless_stalled(self._stub.StreamComparisons(request), BATCH):
                        yield from page.comparisons
                        cursor = page.cursor
                        patience.renew()
                return
            except ServiceError as error:
                self._lost |= error.code in AWAY
                patience.wait(error)

    def count_labels(
        self,
        run_id: str = "",
        source: types_pb2.LabelSource.ValueType = types_pb2.LABEL_SOURCE_UNSPECIFIED,
        dimension: str = "",
    ) -> int:
        """How many of the ``comparisons`` have a label."""
        request = preference_pb2.GetStatsRequest(
            filter=preference_pb2.ComparisonFilter(
                run_id=run_id, source=source, dimension=dimension, labelled_only=True
            )
        )
        return int(self._patiently(lambda: self._stub.GetStats(request, timeout=QUICK)).total)

    def score(self, items: Sequence[tuple[Sequence[ChatMessage], str]], version: int) -> list[float | Failed]:
        """Preference score of each (prompt, answer), or why there is none.

        Raises ``ServiceError`` when the call fails, ``RunError`` for scores of another version.
        """
        if self._may_sleep:
            self._patiently(self._wake)
        patience, scores = self._patience(), Scores()
        self._patiently(
            lambda: add_scores(scores, "preference", self.address, self._stub, items, patience.renew, version=version),
            patience,
        )
        others = {one.weight_version for one in scores.values() if not isinstance(one, Failed)} - {version}
        if others:
            raise RunError(
                f"the preference service at {self.address} scored with version {sorted(others)}, this run "
                f"sent version {version}: something else sends weights to it. Stop that, then resume the run"
            )
        return in_order(scores)

    def send(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightUpdate:
        """Serve a preference model, whatever was served before."""
        start = time.monotonic()
        weights = pack_weights(tensors, version)
        self._until_done(lambda: send_packed(self._control_address, weights, service="preference", force=True))
        return WeightUpdate(version, time.monotonic() - start, len(weights.blob), weights.sha256)

    def when_without_weights(self, send_again: Callable[[], object]) -> None:
        """From now on ``send_again`` is called when the service has come back without weights."""
        self._send_again = send_again

    def _patience(self) -> Patience:
        return Patience("preference", self._reporter, self._max_wait_seconds)

    def _until_done(self, ask: Callable[[], V], patience: Patience | None = None) -> V:
        """What ``ask`` gives, tried again as long as waiting may help. Raises as ``Patience.wait``."""
        patience = patience or self._patience()
        while True:
            try:
                return ask()
            except ServiceError as error:
                patience.wait(error)

    def _patiently(self, call: Callable[[], V], patience: Patience | None = None) -> V:
        """As ``_until_done`` for a call of the main port, by a service that has its weights."""

        def ask() -> V:
            self._return()
            try:
                with explained("preference", self.address):
                    return call()
            except ServiceError as error:
                self._lost |= error.code in AWAY
                if error.code is grpc.StatusCode.FAILED_PRECONDITION and self._send_again is not None:
                    # Without weights since it restarted is mended; before the run has sent any, it is an error.
                    self._lost = True
                    if self._return():
                        return ask()
                raise

        return self._until_done(ask, patience)

    def _return(self) -> bool:
        """After the service was away: find it again, and give it its weights if it has none; whether it had none."""
        if not self._lost:
            return False
        self._channel.close()
        self._open()
        with explained("preference", self.address):
            without_weights = self._info().weight_version == 0
        if without_weights and self._send_again is not None:
            self._send_again()
        self._lost = False
        return without_weights

    def _open(self) -> None:
        self._channel = connect(self.address)
        self._stub = preference_pb2_grpc.PreferenceServiceStub(self._channel)

    def _info(self) -> types_pb2.ModelInfo:
        request = preference_pb2.PreferenceServiceGetModelInfoRequest()
        return self._stub.GetModelInfo(request, timeout=QUICK).model
