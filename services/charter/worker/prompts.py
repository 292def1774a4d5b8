"""The prompts of a run: those that it trains on and those that it holds out, and the order in which they are taken."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.prompts import TaskPrompt, read_prompts
from charter.data.sources import Source
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt
from charter.shown import beginning
from charter.v1 import run_pb2
from charter.worker.errors import SpecError
from charter.worker.seeds import derive_seed
from charter.worker.supervised.mixture import Mixture


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts to train on and prompts held out, and how many were left out for their length.

    ``sources`` has the keys of the prompts that each source gave to ``train``, by its short name, in the order of the
    spec; ``weights`` those of the sources, empty where the spec states none.
    """

    train: tuple[TaskPrompt, ...]
    held_out: tuple[TaskPrompt, ...]
    too_long: int
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def take(self, prompts: Sequence[TaskPrompt], cursor: int, count: int, seed: int) -> list[TaskPrompt]:
        """As the function ``take``, of some of ``train``; with weights, each source has its share of what is taken."""
        if not self.weights:
            return take(prompts, cursor, count, seed)
        by_source = self._by_source(prompts)
        stream = self._mixture(by_source).stream(cursor, count, derive_seed(seed, "prompts of sources"))
        return [by_source[source][place] for source, place in stream]

    def shares(self) -> dict[str, float]:
        """Of each source in the prompts that are taken of all of ``train``."""
        return self._mixture(self._by_source(self.train)).shares

    def _by_source(self, prompts: Sequence[TaskPrompt]) -> dict[str, list[TaskPrompt]]:
        """Without sources that have none of them."""
        divided = {name: [one for one in prompts if one.key in keys] for name, keys in self.sources.items()}
        return {name: found for name, found in divided.items() if found}

    def _mixture(self, by_source: Mapping[str, Sequence[TaskPrompt]]) -> Mixture:
        return Mixture.weighted({name: [1] * len(found) for name, found in by_source.items()}, self.weights)


def load_prompt_sets(spec: run_pb2.PromptSpec, tokenizer: ChatTokenizer, bad: BadRows | None = None) -> PromptSets:
    """Read both sets and leave out repeated prompts and those of more than ``max_prompt_tokens`` tokens.

    A prompt that several sources have is of the first. Raises ``SpecError`` for bad rows where they stop, when a
    held-out prompt is also trained on, or when nothing is left of a set, or of a source with a weight.
    """
    max_prompt_tokens = spec.max_prompt_tokens
    try:
        by_source = {name: read_prompts(source, bad) for name, source in _named(spec.train).items()}
        train_prompts = _unique(prompt for found in by_source.values() for prompt in found)
        held_prompts = _unique(prompt for source in spec.held_out for prompt in read_prompts(source, bad))
    except DataError as error:
        raise SpecError(str(error)) from error
    if shared := train_prompts.keys() & held_prompts.keys():
        example = next(train_prompts[key] for key in train_prompts if key in shared)
        raise SpecError(
            f"{len(shared)} held-out prompts are also in prompts.train, for example {beginning(example.text)!r}: "
            "remove them from one of the two"
        )
    fitting_train = [prompt for prompt in train_prompts.values() if _fits(prompt, tokenizer, max_prompt_tokens)]
    fitting_held = [prompt for prompt in held_prompts.values() if _fits(prompt, tokenizer, max_prompt_tokens)]
    for name, fitting in (("train", fitting_train), ("held_out", fitting_held)):
        if not fitting:
            raise SpecError(
                f"every prompt of prompts.{name} has more than max_prompt_tokens={max_prompt_tokens} tokens"
            )
    too_long = len(train_prompts) + len(held_prompts) - len(fitting_train) - len(fitting_held)
    sources = _of_first(by_source, {prompt.key for prompt in fitting_train})
    weights = dict(zip(by_source, spec.train_weights, strict=True)) if spec.train_weights else {}
    for name in weights:
        if not sources[name]:
            raise SpecError(
                f"prompts.train: {name} has a weight, and nothing is left of it: its prompts are too long, or all of "
                "them are in the sources before it"
            )
    return PromptSets(tuple(fitting_train), tuple(fitting_held), too_long, sources, weights)


def take(prompts: Sequence[TaskPrompt], cursor: int, count: int, seed: int) -> list[TaskPrompt]:
    """Prompts ``cursor`` to ``cursor + count`` of an endless stream: all prompts in a new order in every pass."""
    orders: dict[int, list[int]] = {}
    taken = []
    for position in range(cursor, cursor + count):
        turn, place = divmod(position, len(prompts))
        if turn not in orders:
            order = list(range(len(prompts)))
            random.Random(derive_seed(seed, "prompt order", turn)).shuffle(order)
            orders[turn] = order
        taken.append(prompts[orders[turn][place]])
    return taken


def _named(sources: Iterable[str]) -> dict[str, str]:
    """Sources by a short name, on which what is drawn of them depends: not by where their files are."""
    named: dict[str, str] = {}
    for source in sources:
        name = str(Source.parse(source).without_folder())
        named[name if name not in named else f"{name} ({len(named) + 1})"] = source
    return named


def _of_first(by_source: Mapping[str, Sequence[TaskPrompt]], fitting: set[str]) -> dict[str, frozenset[str]]:
    """Keys of each source's prompts, each in the first source that has it."""
    left, found = set(fitting), {}
    for name, prompts in by_source.items():
        found[name] = frozenset(left & {prompt.key for prompt in prompts})
        left -= found[name]
    return found


def _unique(prompts: Iterable[TaskPrompt]) -> dict[str, TaskPrompt]:
    unique: dict[str, TaskPrompt] = {}
    for prompt in prompts:
        unique.setdefault(prompt.key, prompt)
    return unique


def _fits(prompt: TaskPrompt, tokenizer: ChatTokenizer, limit: int) -> bool:
    try:
        return len(tokenizer.prompt_ids(Prompt(prompt.messages))) <= limit
    except ValueError as error:
        raise SpecError(f"prompt {beginning(prompt.text)!r}: {error}") from error
