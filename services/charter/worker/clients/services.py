"""The services as the worker sees them: one client for each, with errors worded for a person."""

from collections.abc import Sequence

from charter.chat import ChatMessage
from charter.spec.defaults import MAX_WAIT_SECONDS
from charter.spec.facts import servers_sleep
from charter.v1 import run_pb2
from charter.worker.clients.failed import Failed
from charter.worker.clients.judge import JudgeClient
from charter.worker.clients.policy import PolicyClient
from charter.worker.clients.preference import PreferenceClient
from charter.worker.clients.scoring import score_elsewhere
from charter.worker.reporter import Reporter


class Services:
    """The clients of policy, judge and preference service; ``close`` them at the end.

    ``reporter`` hears of it when the run waits for a service, and says whether it should stop.
    """

    def __init__(self, addresses: run_pb2.ServiceAddresses, reporter: Reporter) -> None:
        self.addresses = addresses
        self._reporter = reporter
        sleeps = servers_sleep(addresses)
        self._max_wait_seconds = seconds = addresses.max_wait_seconds or MAX_WAIT_SECONDS
        self.policy = PolicyClient(addresses, reporter, max_wait_seconds=seconds, sleeps=sleeps)
        self.judge = JudgeClient(addresses, reporter, max_wait_seconds=seconds, sleeps=sleeps)
        self.preference = PreferenceClient(addresses, reporter, max_wait_seconds=seconds, sleeps=sleeps)

    def close(self) -> None:
        """Close every client."""
        self.policy.close()
        self.judge.close()
        self.preference.close()

    def sleep(self) -> None:
        """Free the GPU memory of all services that share the worker's GPU; each wakes when it is next asked something.

        Raises ``ServiceError`` when one cannot sleep.
        """
        self.policy.replicas.sleep()
        if self.addresses.judge_control:
            self.judge.replicas.sleep()
        self.preference.sleep()

    def score_elsewhere(
        self, address: str, model: str, items: Sequence[tuple[Sequence[ChatMessage], str]]
    ) -> list[float | Failed]:
        """As the function of that name, waiting as for every service."""
        return score_elsewhere(address, model, items, self._reporter, self._max_wait_seconds)
