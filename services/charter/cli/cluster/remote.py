"""Whether a command works on a cluster (`charter --context CTX`) instead of this machine."""

import os

# Set to the namespace for the commands that `charter.cli.cluster.access.connected` surrounds.
VARIABLE = "CHARTER_REMOTE"


def remote() -> bool:
    """Whether the services are a cluster's: its files are not here."""
    return VARIABLE in os.environ
