"""Environment variables of Charter whose values have a form."""

import os

METRICS_PORT_VARIABLE = "CHARTER_WORKER_METRICS_PORT"
WORKER_METRICS_PORT = 9095


class EnvironmentVariableError(ValueError):
    """An environment variable cannot be used; the message names it and says what it takes."""


def worker_metrics_port() -> int:
    """Port of a worker's metrics page, 0 for none. Raises ``EnvironmentVariableError``."""
    text = os.environ.get(METRICS_PORT_VARIABLE) or str(WORKER_METRICS_PORT)
    if not _is_port(text) and text != "0":
        raise EnvironmentVariableError(
            f"{METRICS_PORT_VARIABLE} must be a port from 1 to 65535, or 0 for no metrics page, not {text!r}"
        )
    return int(text)


def addresses(name: str, usual: str, *, several: bool) -> str:
    """One address host:port, or ``several`` with commas between them; ``usual`` where the variable is not set.

    Raises ``EnvironmentVariableError``.
    """
    text = os.environ.get(name)
    if not text:
        return usual
    for one in text.split(",") if several else [text]:
        host, _, port = one.rpartition(":")
        if not one.startswith("unix:") and (not host.strip("/") or not _is_port(port) or "," in one):
            raise EnvironmentVariableError(
                f"{name} must be an address host:port{' or several, host:port,host:port,' if several else ','} with a "
                f"port from 1 to 65535, not {text!r}"
            )
    return text


def _is_port(text: str) -> bool:
    # gRPC takes numbers above modulo 65536.
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
