"""Sampled answers that nobody has learned from yet, as a checkpoint keeps them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from charter.worker.clients.policy import Answer
from charter.worker.reinforcement.sampling.rollouts import Batch


def write_batches(path: Path, batches: Mapping[int, Batch]) -> None:
    """Write batches by step as JSON. Every log-prob is read back bit for bit."""
    steps = {
        str(step): {
            "seconds": batch.seconds,
            "seed": batch.seed,
            "groups": [[_record(one) for one in group] for group in batch.groups],
        }
        for step, batch in batches.items()
    }
    path.write_text(json.dumps(steps), encoding="utf-8")


def read_batches(path: Path) -> dict[int, Batch]:
    """What ``write_batches`` wrote."""
    steps = json.loads(path.read_text(encoding="utf-8"))
    return {int(step): _batch(batch) for step, batch in steps.items()}


def _batch(record: dict[str, Any]) -> Batch:
    groups = [[_answer(one) for one in group] for group in record["groups"]]
    return Batch(groups, record["seconds"], record["seed"])


def _record(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "prompt_token_ids": answer.prompt_token_ids,
        "token_ids": answer.token_ids,
        "logprobs": answer.logprobs.tolist(),
        "versions": answer.versions,
        "ended": answer.ended,
    }


def _answer(record: dict[str, Any]) -> Answer:
    return Answer(
        text=record["text"],
        prompt_token_ids=tuple(record["prompt_token_ids"]),
        token_ids=tuple(record["token_ids"]),
        logprobs=np.array(record["logprobs"], dtype=np.float32),
        versions=tuple(record["versions"]),
        ended=record["ended"],
    )
