"""Rows of comparisons as data sets of the field hold them; what they say is made up."""

from typing import Any


def safe_rlhf(**more: Any) -> dict[str, Any]:
    """A row of PKU-Alignment/PKU-SafeRLHF."""
    return {
        "prompt": "Is tea hot?",
        "response_0": "yes",
        "response_1": "no",
        "prompt_source": "x",
        "response_0_source": "m",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "response_0_severity_level": 0,
        **more,
    }


def shp(**more: Any) -> dict[str, Any]:
    """A row of stanfordnlp/SHP."""
    return {
        "post_id": "a1",
        "domain": "askculinary_train",
        "history": "Is tea hot?",
        "human_ref_A": "yes",
        "human_ref_B": "no",
        "labels": 1,
        "score_A": 30,
        "score_B": 10,
        "score_ratio": 3.0,
        **more,
    }
