"""Prompts as reports, logs and terminals show them: one that looks for harm stands nowhere in full."""


def beginning(prompt: str, most: int = 60) -> str:
    """Its first characters: no more than ``most``, and no more than the half."""
    return f"{prompt[: min(most, len(prompt) // 2)]}…" if prompt else ""
