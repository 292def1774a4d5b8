"""What keeps calls to an endpoint within bounds: quotas for each minute, a circuit breaker, a budget of tokens."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from charter.inference.engine import BudgetSpentError

_MINUTE = 60.0


@dataclass(slots=True, eq=False)
class Use:
    """What was taken from a quota at a time."""

    time: float
    amount: float


class MinuteQuota:
    """At most ``limit`` of something in any 60 seconds; whoever asks for more waits, in the order of asking.

    An amount above the limit counts as the limit: it then has a minute for itself.
    """

    def __init__(
        self,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._sleep = sleep
        self._uses: deque[Use] = deque()
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> Use:
        """Wait until there is room, and take it. The use may be corrected later, see ``settle``."""
        amount = min(amount, self._limit)
        async with self._turn:
            while (wait := self._wait(amount)) > 0:
                await self._sleep(wait)
            use = Use(self._clock(), amount)
            self._uses.append(use)
            return use

    def settle(self, use: Use, amount: float) -> None:
        """Replace the estimate by what was really used."""
        use.amount = amount

    def _wait(self, amount: float) -> float:
        """Seconds until the oldest use leaves the last minute; 0 when there is room now."""
        now = self._clock()
        while self._uses and self._uses[0].time + _MINUTE <= now:
            self._uses.popleft()
        if not self._uses or sum(use.amount for use in self._uses) + amount <= self._limit:
            return 0.0
        return self._uses[0].time + _MINUTE - now


class CircuitBreaker:
    """Opens after ``failures`` failed calls in a row; then one call goes through each ``seconds``, until one succeeds.

    While it is open nobody waits for an endpoint that is down, and the endpoint can come up without being stormed.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._seconds = seconds
        self._clock = clock
        self._in_a_row = 0
        self._try_again = 0.0

    @property
    def open(self) -> bool:
        """Whether calls are being refused."""
        return self._in_a_row >= self._failures

    def seconds_to_wait(self) -> float:
        """0 when a call may go ahead; it is then the only one for a while if the breaker is open."""
        if not self.open:
            return 0.0
        now = self._clock()
        if now < self._try_again:
            return self._try_again - now
        self._try_again = now + self._seconds
        return 0.0

    def succeeded(self) -> None:
        """The endpoint answered."""
        self._in_a_row = 0

    def failed(self) -> None:
        """The endpoint did not answer, after every retry."""
        self._in_a_row += 1
        if self.open:
            self._try_again = self._clock() + self._seconds


class TokenBudget:
    """Counts tokens, and refuses further calls once ``most`` are spent. ``most`` None is no bound."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.spent = 0

    def check(self) -> None:
        """Raise ``BudgetSpentError`` when nothing is left. Calls under way still end, and may pass the bound."""
        if self.most is not None and self.spent >= self.most:
            raise BudgetSpentError(self.spent, self.most)
