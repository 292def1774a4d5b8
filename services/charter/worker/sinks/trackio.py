"""A run in Trackio."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.base import DEFAULT_PROJECT, Ending, configuration, missing, named, place_of

# In the run's folder, where it is kept unless TRACKIO_DIR says so.
FOLDER = "trackio"


class Trackio:
    """A run of this name in Trackio, with the spec as its configuration. Its variables say where it is kept.

    The library sends on a thread of its own, and only warns of what it cannot send.
    """

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        # It reads this once, when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str((folder / FOLDER).absolute()))
        try:
            import trackio
        except ImportError as error:
            raise missing("trackio", error) from error
        self._trackio: Any = trackio
        try:
            # What it prints is for a person at a terminal.
            with redirect_stdout(StringIO()):
                self._run: Any = trackio.init(
                    project=os.environ.get("TRACKIO_PROJECT", DEFAULT_PROJECT),
                    name=run_id,
                    resume="allow",
                    config=configuration(spec),
                    # Of a Space that it makes: a spec names folders and people.
                    private=True,
                    # Numbers of the run only.
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        except (ValueError, OSError) as error:
            raise RunError(
                f"`sinks` asks for trackio, and it does not start: {str(error).rstrip('.')}. Set TRACKIO_SPACE_ID and "
                "HF_TOKEN, or TRACKIO_SERVER_URL and TRACKIO_WRITE_TOKEN, where the worker runs, or none of them to "
                "keep its files in the run's folder"
            ) from error

    def write(self, event: run_pb2.RunEvent) -> None:
        """All numbers at once."""
        self._run.log(named(event), step=place_of(event))

    def close(self, ending: Ending) -> None:
        """Send what is left."""
        with redirect_stdout(StringIO()):
            self._trackio.finish()
