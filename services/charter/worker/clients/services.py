"""The services as the worker sees them: one client for each, with errors worded for a person."""

from collections.abc import Sequence
from functools import cached_property

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

    A client is made when it is first asked for: a run that learns from files alone needs none, and looks for none.
    ``reporter`` hears of it when the run waits for a service, and says whether it should stop.
    """

    def __init__(self, addresses: run_pb2.ServiceAddresses, reporter: Reporter) -> None:
        self.addresses = addresses
        self._reporter = reporter
        self._sleeps = servers_sleep(addresses)
        self._max_wait_seconds = addresses.max_wait_seconds or MAX_WAIT_SECONDS

    @cached_property
    def policy(self) -> PolicyClient:
        """Of the policy's replicas."""
        return PolicyClient(
            self.addresses, self._reporter, max_wait_seconds=self._max_wait_seconds, sleeps=self._sleeps
        )

    @cached_property
    def judge(self) -> JudgeClient:
        """Of the judge's replicas."""
        return JudgeClient(self.addresses, self._reporter, max_wait_seconds=self._max_wait_seconds, sleeps=self._sleeps)

    @cached_property
    def preference(self) -> PreferenceClient:
        """Of the preference service."""
        return PreferenceClient(
            self.addresses, self._reporter, max_wait_seconds=self._max_wait_seconds, sleeps=self._sleeps
        )

    def close(self) -> None:
        """Close every client."""
        for name in ("policy", "judge", "preference"):
            if name in self.__dict__:
                getattr(self, name).close()

    def sleep(self) -> None:
        """Free the GPU memory of the services that were asked something; each wakes when it is asked again.

        Raises ``ServiceError`` when one cannot sleep.
        """
        made = self.__dict__
        if "policy" in made:
            self.policy.replicas.sleep()
        if "judge" in made and self.addresses.judge_control:
            self.judge.replicas.sleep()
        if "preference" in made:
            self.preference.sleep()

    def score_elsewhere(
        self, address: str, model: str, items: Sequence[tuple[Sequence[ChatMessage], str]]
    ) -> list[float | Failed]:
        """As the function of that name, waiting as for every service."""
        return score_elsewhere(address, model, items, self._reporter, self._max_wait_seconds)
