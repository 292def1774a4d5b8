"""Environment variables of Charter whose values have a form."""

import math
import os
from typing import NamedTuple

METRICS_PORT_VARIABLE = "CHARTER_WORKER_METRICS_PORT"
WORKER_METRICS_PORT = 9095
PRICE_VARIABLE = "CHARTER_PRICE_PER_HOUR"


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


class Price(NamedTuple):
    """What something costs."""

    amount: float
    currency: str


def price_per_hour() -> Price | None:
    """What an hour of the worker's machine costs, if anybody said. Raises ``EnvironmentVariableError``."""
    text = os.environ.get(PRICE_VARIABLE)
    if not text:
        return None
    amount, _, currency = text.strip().partition(" ")
    try:
        price = Price(float(amount), currency.strip())
    except ValueError:
        price = Price(math.nan, "")
    if not 0 <= price.amount < math.inf or not (price.currency.isalpha() and price.currency.isupper()):
        raise EnvironmentVariableError(
            f"{PRICE_VARIABLE} must be the price of an hour of the worker's machine and its currency, as 2.50 EUR, not "
            f"{text!r}"
        )
    return price


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
