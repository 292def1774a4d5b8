"""Names of models as a page shows them: a folder's path is long, and says more of a machine than of the model."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of the hub's ids, ``organisation/name``."""
    return _HUB_ID.fullmatch(name) is not None


def on_hub(model: str) -> bool:
    """Whether a model's name is an id of the hub, ``organisation/name``, and no folder that is here."""
    return is_hub_id(model) and not Path(model).exists()


def model_name(model: str) -> str:
    """A hub id as it is; of a folder only its name."""
    return model if not model or on_hub(model) else Path(model).name or model
