"""Errors that end a run. Their messages are for the person who started it."""


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class SpecError(RunError):
    """The spec or a file that it names is wrong: starting the worker again would change nothing."""


class TooManyFailuresError(RunError):
    """More of a stage's items had to be left out than the spec allows: a person should look before it goes on."""


class NotFiniteError(RunError):
    """A gradient or a number of the run is not finite. Other draws may go well: see ``charter.worker.failures``."""


class Cancelled(Exception):  # noqa: N818 (it is not an error)
    """The run was asked to stop and everything worth keeping is saved."""


class Superseded(Exception):  # noqa: N818 (it is not an error)
    """A newer worker has taken over the run: stop without touching its files."""
