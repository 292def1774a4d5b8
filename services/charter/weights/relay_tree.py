"""Which replica passes new weights on to which, so that the sender's bandwidth does not bound their number."""

from collections.abc import Sequence

# To how many replicas the sender, and each replica that passes weights on, sends at the same time.
FAN_OUT = 2


def relays(addresses: Sequence[str]) -> dict[str, str]:
    """For each replica the one that passes the weights on to it, by control port; those that are left out get them
    from the sender.

    The k-th replica passes on to the replicas ``FAN_OUT * (k + 1)`` and following, as in a heap. Bytes are passed on as
    they come, so that the depth costs little time, and a relay that fails costs a resend to those behind it.
    """
    return {address: addresses[place // FAN_OUT - 1] for place, address in enumerate(addresses) if place >= FAN_OUT}
