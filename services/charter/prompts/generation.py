"""Has a policy write prompts until there are enough, or nothing new comes."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.data.prompts import TaskPrompt
from charter.held_out import normalised
from charter.prompts.asking import Try, Wanted, try_of
from charter.prompts.folder import ACCEPTED, Folder, Written
from charter.prompts.rules import why_refused
from charter.prompts.split import HELD_OUT, TRAIN, Split
from charter.rpc.channel import BATCH
from charter.v1 import policy_pb2, policy_pb2_grpc

# Tries in one call. A try is made again in the same call with the same others, so that its text is the same to the bit.
_TOGETHER = 16

ENOUGH, NO_MORE_TRIES, NOTHING_NEW = "enough", "no_more_tries", "nothing_new"


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: with so many prompts, after so many tries in all, or so many in a row that gave nothing new."""

    count: int
    tries: int
    patience: int


@dataclass(frozen=True, slots=True)
class Options:
    """What a prompt may be, and how it is sampled."""

    held_out_fraction: float
    least_words: int
    most_words: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """``known`` are prompts that are trained on, ``held_out`` those that are held out: none is made again."""

    wanted: Wanted
    options: Options
    known: Sequence[TaskPrompt]
    held_out: Sequence[TaskPrompt]

    def drawn_by(self) -> dict[str, Any]:
        """What the prompts follow from, beside the policy's weights."""
        wanted, options = self.wanted, self.options
        return {
            "method": wanted.method,
            "seed": wanted.seed,
            "dimensions": list(wanted.dimensions),
            "topics": list(wanted.topics),
            "examples": wanted.examples,
            "seeds": _digest(self.known),
            "held_out": _digest(self.held_out),
            "held_out_fraction": options.held_out_fraction,
            "words": [options.least_words, options.most_words],
            "temperature": options.temperature,
            "max_new_tokens": options.max_new_tokens,
        }

    def run(
        self, policy: policy_pb2_grpc.PolicyServiceStub, folder: Path, limits: Limits, report: Callable[[Folder], None]
    ) -> tuple[Folder, str]:
        """Write prompts to a folder, or go on there; returns what is there and why it stopped.

        Raises ``AnotherGenerationError`` for a folder of other options, and what the policy's calls raise.
        """
        there = Folder.open(folder, self.drawn_by())
        split = self._split(there)
        model = policy.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=BATCH).model.model
        while not (stop := _why_stop(there, limits)):
            first = len(there.outcomes) // _TOGETHER * _TOGETHER
            tries = [try_of(self.wanted, number) for number in range(first, first + _TOGETHER)]
            with closing(self._sampled(policy, tries)) as sampled:
                for asked, sample in sampled:
                    if asked.number < len(there.outcomes):
                        continue
                    if _why_stop(there, limits):
                        break
                    self._add(there, split, asked, sample, model)
                    report(there)
        return there, stop

    def _split(self, there: Folder) -> Split:
        split = Split(self.options.held_out_fraction)
        for side, known in ((HELD_OUT, self.held_out), (TRAIN, self.known)):
            for one in known:
                for turn in one.messages:
                    if turn.role == "user":
                        split.add(turn.content, side)
        for written in there.prompts:
            split.add(written.text, written.side)
        return split

    def _sampled(
        self, policy: policy_pb2_grpc.PolicyServiceStub, tries: Sequence[Try]
    ) -> Generator[tuple[Try, policy_pb2.Sample], None, None]:
        """Tries with what the policy wrote, in their order, as soon as those before are there."""
        request = policy_pb2.GenerateRequest(
            prompts=[one.as_request() for one in tries],
            sampling=policy_pb2.SamplingParameters(
                temperature=self.options.temperature, max_new_tokens=self.options.max_new_tokens
            ),
        )
        waiting: dict[int, policy_pb2.Sample] = {}
        place = 0
        responses = policy.Generate(request, timeout=BATCH)
        try:
            for response in responses:
                waiting[response.prompt_index] = response.sample
                while place in waiting:
                    yield tries[place], waiting.pop(place)
                    place += 1
        finally:
            responses.cancel()

    def _add(self, there: Folder, split: Split, asked: Try, sample: policy_pb2.Sample, model: str) -> None:
        outcomes, written = [], []
        ended = sample.finish_reason == policy_pb2.FINISH_REASON_EOS
        for place, (text, cut_off) in enumerate(asked.read(sample.text, ended=ended)):
            side, refused = (
                "",
                why_refused(
                    text, cut_off=cut_off, least_words=self.options.least_words, most_words=self.options.most_words
                ),
            )
            if not refused:
                side, refused = split.side_of(text)
            outcomes.append(refused or ACCEPTED)
            if not refused:
                split.add(text, side)
                written.append(Written(side, _row(text, asked, place, sample, model)))
        there.add(outcomes, written)


def _row(text: str, asked: Try, place: int, sample: policy_pb2.Sample, model: str) -> dict[str, Any]:
    """A row as ``charter.data.prompts`` reads it, with where it comes from."""
    generated = {
        "model": model,
        "weight_version": max((span.weight_version for span in sample.version_spans), default=0),
        "method": asked.method,
        "seed": asked.seed,
        "try": asked.number,
        "place": place,
        "topic": asked.topic,
        "examples": [one.key for one in asked.examples],
    }
    return {"prompt": text, "dimension": asked.dimension, "generated": generated}


def _why_stop(there: Folder, limits: Limits) -> str:
    if len(there.prompts) >= limits.count:
        return ENOUGH
    if there.tries_since_accepted() >= limits.patience:
        return NOTHING_NEW
    return NO_MORE_TRIES if len(there.outcomes) >= limits.tries else ""


def _digest(prompts: Sequence[TaskPrompt]) -> str:
    content = "\n".join(sorted(f"{one.dimension} {normalised(one.text)}" for one in prompts))
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]
