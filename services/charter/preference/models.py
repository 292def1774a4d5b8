"""The preference models that one service has loaded, by name."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc

from charter.preference.scorer import Scorer, is_fitted
from charter.rpc.errors import StatusError


class PreferenceModels:
    """A scorer for each model. The first is the one that runs send their weights to; the others stay as they are.

    ``models`` gives the folder (or hub id) of each by its name. Raises ``ValueError`` when one of the others is no
    preference model that ``PreferenceModel.save`` wrote: it would never get weights to score with.
    """

    def __init__(self, models: Mapping[str, str]) -> None:
        for name, model in list(models.items())[1:]:
            if not is_fitted(model):
                raise ValueError(
                    f"the model `{name}`, {model}, is no preference_model folder of a run. Only the first model may be "
                    "a language model: it is the one that gets weights"
                )
        # One thread for all, so that forward passes of two models do not fight for the same cores.
        self._computing = ThreadPoolExecutor(1, "torch")
        self._scorers = {name: Scorer(model, name, self._computing) for name, model in models.items()}
        self.first = next(iter(self._scorers.values()))

    def named(self, name: str) -> Scorer:
        """The scorer of a name, of the first model for none. Raises NOT_FOUND, with the names that there are."""
        if not name:
            return self.first
        try:
            return self._scorers[name]
        except KeyError:
            loaded = ", ".join(f"`{one}`" for one in self._scorers)
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"no preference model `{name}` is loaded here; loaded: {loaded}"
            ) from None

    def all(self) -> dict[str, Scorer]:
        """Every scorer by its name, the first first."""
        return dict(self._scorers)

    async def start(self) -> None:
        """Load one after the other. Raises as ``Scorer.start``."""
        for scorer in self._scorers.values():
            await scorer.start()

    async def stop(self) -> None:
        """Free all."""
        for scorer in self._scorers.values():
            await scorer.stop()
        await asyncio.to_thread(self._computing.shutdown)

    async def sleep(self) -> None:
        """Move all to main memory. See ``Engine.sleep``."""
        for scorer in self._scorers.values():
            await scorer.sleep()

    async def wake(self) -> None:
        """Move all back. See ``Engine.wake``."""
        for scorer in self._scorers.values():
            await scorer.wake()
