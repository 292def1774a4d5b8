"""Seeds for every random draw, derived from the run's seed, so that none depends on what was drawn before."""

from charter.hashing import stable_number


def derive_seed(seed: int, *parts: str | int) -> int:
    """A number in [0, 2^63) for a named use, for example ``derive_seed(seed, "rollout", step)``."""
    return _digest(seed, *parts) >> 1


def stable_fraction(*parts: str | int) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return (_digest(*parts) >> 11) / 2**53


def _digest(*parts: str | int) -> int:
    return stable_number(*(f"{type(part).__name__}:{part}" for part in parts))
