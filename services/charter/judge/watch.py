"""The constitution that is judged by now: read from its file, and again whenever the file changes."""

import asyncio
import logging
from pathlib import Path

from charter.judge import metrics
from charter.spec.constitution import Constitution, ConstitutionError, load_constitution

logger = logging.getLogger("charter.judge")

_POLL_SECONDS = 1.0

# What of a file's status changes when it is written or replaced; in a cluster a link is replaced.
_Stamp = tuple[int, int, int]


class WatchedConstitution:
    """Holds the constitution of a file. A change that is not valid is logged, counted, and not taken."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ``ConstitutionError``, ``OSError``."""
        self._path = path
        self._only: tuple[str, str] | None = None
        self._stamp = _stamp(path)
        self.current = load_constitution(path)
        _show(None, self.current)

    def keep(self, why: str) -> None:
        """Take no constitution but the one of now; a change is then refused because of ``why``."""
        self._only = self.current.digest, why

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Take the file's new content, if it has changed and is valid."""
        try:
            stamp = await asyncio.to_thread(_stamp, self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            constitution = await asyncio.to_thread(load_constitution, self._path)
            if self._only is not None and constitution.digest != self._only[0]:
                raise ConstitutionError([self._only[1]])
        except (ConstitutionError, OSError) as error:
            # While the file is away every look ends here; it is said once.
            if self._stamp != _GONE:
                metrics.RELOADS.labels("refused").inc()
                logger.error(
                    "constitution not taken, the old one stays",
                    extra={"file": str(self._path), "problem": str(error), "digest": self.current.digest},
                )
            if isinstance(error, OSError):
                self._stamp = _GONE
            return
        _show(self.current, constitution)
        self.current = constitution
        metrics.RELOADS.labels("loaded").inc()
        logger.info("constitution reloaded", extra={"file": str(self._path), "digest": constitution.digest})


_GONE: _Stamp = (0, 0, 0)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _show(old: Constitution | None, new: Constitution) -> None:
    if old is not None:
        metrics.CONSTITUTION.remove(old.name, old.version, old.digest)
        kept = {principle.id for principle in new.principles}
        metrics.forget_principles({principle.id for principle in old.principles} - kept)
    metrics.CONSTITUTION.labels(new.name, new.version, new.digest).set(1)
