"""Sampling from a causal model, with the exact log-prob of every sampled token.

``transformers.generate`` is not used: its scores are those after its own logit processing and have to be
kept for every step ([rows, vocabulary] each) to get log-probs, and a row that has ended stays in the batch
until the longest one ends. Here a row leaves when it ends, and only two numbers per token are kept.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from charter.inference.engine import Sampling
from charter.inference.local.model import left_padded, likeliest, positions
from charter.inference.local.model_check import agrees, narrowed, own_logprobs, probes
from charter.inference.local.prefix_tree import Wanted, whole_tree
from charter.inference.local.roomy_cache import roomy_cache
from charter.inference.local.tree_model import tree_arguments, windows


@dataclass(slots=True, eq=False)
class Row:
    """One answer being written."""

    prompt_ids: Sequence[int]
    # Asked before every step; a row that is not wanted any more leaves the batch.
    wanted: Callable[[], bool]
    # Where its random numbers come from.
    generator: torch.Generator
    most_tokens: int
    # Asked with the tokens so far, once there is another: whether the answer ends there.
    stops: Callable[[Sequence[int]], bool] = lambda _: False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    # The likeliest tokens in each place, with their log-probs, where ``Sampling.top_logprobs`` asks for them.
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    first_token_time: float | None = None  # by time.monotonic()


class Way(IntEnum):
    """How rows that are being written are read: the fastest first, the last is right for any model."""

    # Padded rows with a cache; what prompts begin with is read once, on a CPU.
    SHARED = 0
    # Padded rows with a cache.
    BATCHED = 1
    # One row after the other, with a cache.
    ALONE = 2
    # One row after the other, and for each token all of it again.
    AGAIN = 3


def way_to_sample(model: PreTrainedModel, pad_id: int, *, share: bool) -> Way:
    """The fastest way in which tokens get the log-probs that the model gives them in each sequence alone.

    Tried on rows of unequal lengths, one of which ends early, also past a model's windows. With ``share`` the model
    computes trees.
    """
    cached_whole = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    first = Way.SHARED if share and cached_whole and model.device.type == "cpu" else Way.BATCHED
    return next((way for way in list(Way)[first:-1] if _is_right(way, model, pad_id)), Way.AGAIN)


@torch.inference_mode()
def _is_right(way: Way, model: PreTrainedModel, pad_id: int) -> bool:
    rows: list[Row] = []

    def sampled() -> list[Tensor]:
        rows[:] = [_row_of(tokens, ids) for tokens, ids in zip((6, 2, 6), probes(model), strict=True)]
        sample_rows(model, rows, Sampling(6), frozenset(), pad_id, lambda _row: None, lambda _row: None, way=way)
        return [torch.tensor(row.logprobs) for row in rows]

    def own() -> list[Tensor]:
        return [own_logprobs(model, row.prompt_ids, row.token_ids) for row in rows]

    what = f"sampling in rows that are {way.name.lower()}"
    if not agrees(model, sampled, own, what):
        return False
    if not windows(model.config):
        return True
    with narrowed(model):
        return agrees(model, sampled, own, f"{what}, past its window")


def _row_of(tokens: int, prompt_ids: Sequence[int]) -> Row:
    """A row that wants so many tokens."""
    return Row(prompt_ids, lambda: True, torch.Generator().manual_seed(0), tokens)


@torch.inference_mode()
def sample_rows(
    model: PreTrainedModel,
    rows: Sequence[Row],
    sampling: Sampling,
    stop_ids: frozenset[int],
    pad_id: int,
    finished: Callable[[Row], None],
    grown: Callable[[Row], None],
    *,
    way: Way,
) -> None:
    """Write every row's answer; ``grown`` is called for each token of a row but its last, ``finished`` at its end.

    Raises ``FloatingPointError`` when the model's logits are not finite (broken weights).
    """
    for batch in [rows] if way <= Way.BATCHED else [[row] for row in rows]:
        reader = _Again(model, batch[0]) if way is Way.AGAIN else _Padded(model, batch, pad_id, way is Way.SHARED)
        _write(reader, batch, sampling, stop_ids, finished, grown)


def _write(
    reader: "_Padded | _Again",
    rows: Sequence[Row],
    sampling: Sampling,
    stop_ids: frozenset[int],
    finished: Callable[[Row], None],
    grown: Callable[[Row], None],
) -> None:
    logits = reader.read_prompts()
    alive = list(rows)
    for step in itertools.count(1):
        tokens, logprobs = draw(logits.float(), sampling, [row.generator for row in alive])
        if not torch.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite: its weights are broken")
        if step == 1:
            now = time.monotonic()
            for row in alive:
                row.first_token_time = now
        if sampling.top_logprobs is not None:
            tops = likeliest(tempered(logits.float(), sampling), sampling.top_logprobs)
            for row, top in zip(alive, tops, strict=True):
                row.tops.append(top)
        staying = []
        for index, (row, token, logprob) in enumerate(zip(alive, tokens.tolist(), logprobs.tolist(), strict=True)):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if token in stop_ids or step == row.most_tokens or row.stops(row.token_ids):
                finished(row)
            elif row.wanted():
                grown(row)
                staying.append(index)
        if not staying:
            return
        if len(staying) < len(alive):
            kept = torch.tensor(staying, device=tokens.device)
            reader.keep(kept)
            tokens = tokens[kept]
            alive = [alive[index] for index in staying]
        logits = reader.read(tokens)


class _Padded:
    """Left-padded rows that share a KV cache."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], pad_id: int, share: bool) -> None:
        self._model = model
        self._prompts = [row.prompt_ids for row in rows]
        self._share = share
        self._ids, self._mask = left_padded(self._prompts, pad_id, model.device)
        self._place = positions(self._mask)
        self._cache: DynamicCache

    def read_prompts(self) -> Tensor:
        """Logits of what comes next, [rows, vocabulary]."""
        if self._share:
            self._cache, logits = _read_as_tree(self._model, self._prompts)
            return logits
        self._cache = roomy_cache(self._model.config)
        return self._logits(self._ids)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only, int64 [kept]."""
        # The library's ``batch_select_indices`` does not know the states of recurrent layers; this is the same.
        self._cache.reorder_cache(rows)
        self._mask, self._place = self._mask[rows], self._place[rows]

    def read(self, tokens: Tensor) -> Tensor:
        """Logits behind one more token of each row, int64 [rows]."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._place = self._place[:, -1:] + 1
        return self._logits(tokens.unsqueeze(1))

    def _logits(self, ids: Tensor) -> Tensor:
        output = self._model(
            ids,
            attention_mask=self._mask,
            position_ids=self._place,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class _Again:
    """One row, read from its start for each token."""

    def __init__(self, model: PreTrainedModel, row: Row) -> None:
        self._model = model
        self._ids = torch.tensor([[*row.prompt_ids]], device=model.device)

    def read_prompts(self) -> Tensor:
        """As ``_Padded``."""
        logits: Tensor = self._model(self._ids, use_cache=False).logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        """There is one row only, and the last that is left is not taken away."""

    def read(self, tokens: Tensor) -> Tensor:
        """As ``_Padded``."""
        self._ids = torch.cat([self._ids, tokens.unsqueeze(1)], dim=1)
        return self.read_prompts()


def _read_as_tree(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
    """Let a model read prompts as one tree: the cache of their left-padded rows, and the logits behind each."""
    tree = whole_tree([Wanted(index, ids, 0) for index, ids in enumerate(prompts)])
    nodes = [tree.places[index] for index in range(len(prompts))]
    last = torch.tensor([one[-1] for one in nodes])
    read = DynamicCache(config=model.config)
    arguments = tree_arguments(tree, model.device, model.config) | {"use_cache": True, "past_key_values": read}
    logits: Tensor = model(**arguments, logits_to_keep=last).logits[0]
    # Padding takes the first token's states: finite, and the mask hides them.
    places, _ = left_padded(nodes, 0, model.device)
    cache = roomy_cache(model.config)
    for number, layer in enumerate(read.layers):
        keys, values = (states[0][:, places].transpose(0, 1) for states in (layer.keys, layer.values))
        cache.update(keys, values, number)
    return cache, logits


def draw(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Draw one token per row from float32 logits [rows, vocabulary], each with a number of its own generator.

    Returns the tokens (int64 [rows]) and their log-probs (float32 [rows]) under the whole distribution at
    the sampling temperature; at temperature 1 for greedy sampling (temperature 0). ``top_p`` narrows what is
    drawn (nucleus sampling, Holtzman et al. 2020), never the log-probs.
    """
    logprobs = tempered(logits, sampling)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(dim=-1)
    else:
        tokens = _inverse_cdf(_nucleus(logprobs, sampling.top_p), generators)
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def tempered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs of the whole distribution at the sampling temperature, at 1 for greedy sampling; as ``logits``."""
    return (logits / (sampling.temperature or 1.0)).log_softmax(dim=-1)


def _nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """Probabilities, float32 [rows, vocabulary], zero outside the smallest set of tokens that holds ``top_p``."""
    probabilities = logprobs.exp()
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return probabilities.scatter(1, order, ordered.masked_fill(before >= top_p, 0.0))


def _inverse_cdf(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw an index per row in proportion to ``probabilities``.

    One uniform number a row: five to ten times faster on CPU than ``torch.multinomial``, which draws one per token
    of the vocabulary. The sum is float64, so that it does not swallow rare tokens.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    uniform = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    uniform = uniform.to(probabilities.device)
    # u < 1 keeps the threshold under the total; right=True passes over tokens of probability zero.
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp_max(probabilities.shape[-1] - 1)
