"""Sampling from a causal model, with the exact log-prob of every sampled token.

``transformers.generate`` is not used: its scores are those after its own logit processing and have to be
kept for every step ([rows, vocabulary] each) to get log-probs, and a row that has ended stays in the batch
until the longest one ends. Here a row leaves when it ends, and only two numbers per token are kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from charter.inference.engine import Sampling
from charter.inference.local.model import left_padded, positions
from charter.inference.local.prefix_tree import Wanted, whole_tree
from charter.inference.local.roomy_cache import roomy_cache
from charter.inference.local.tree_model import tree_arguments


@dataclass(slots=True, eq=False)
class Row:
    """One answer being written."""

    prompt_ids: Sequence[int]
    # Asked before every step; a row that is not wanted any more leaves the batch.
    wanted: Callable[[], bool]
    # Where its random numbers come from.
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False  # by an end-of-turn token
    first_token_time: float | None = None  # by time.monotonic()


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
    share: bool,
) -> None:
    """Write every row's answer; ``grown`` is called for each token of a row but its last, ``finished`` at its end.

    Rows are left-padded and share a KV cache. With ``share`` what prompts begin with is read only once, on a CPU, by a
    model that computes trees. Raises ``FloatingPointError`` when the model's logits are not finite (broken weights).
    """
    prompts = [row.prompt_ids for row in rows]
    ids, mask = left_padded(prompts, pad_id, model.device)
    place = positions(mask)
    if share and model.device.type == "cpu":
        cache, logits = _read_as_tree(model, prompts)
    else:
        cache = roomy_cache(model.config)
        logits = _read(model, ids, mask, place, cache)
    alive = list(rows)
    for step in range(1, sampling.max_new_tokens + 1):
        tokens, logprobs = draw(logits.float(), sampling, [row.generator for row in alive])
        if not torch.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite: its weights are broken")
        if step == 1:
            now = time.monotonic()
            for row in alive:
                row.first_token_time = now
        staying = []
        for index, (row, token, logprob) in enumerate(zip(alive, tokens.tolist(), logprobs.tolist(), strict=True)):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.ended = token in stop_ids
            if row.ended or step == sampling.max_new_tokens:
                finished(row)
            elif row.wanted():
                grown(row)
                staying.append(index)
        if not staying:
            return
        if len(staying) < len(alive):
            kept = torch.tensor(staying, device=ids.device)
            cache.batch_select_indices(kept)
            tokens, mask, place = tokens[kept], mask[kept], place[kept]
            alive = [alive[index] for index in staying]
        ids = tokens.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        place = place[:, -1:] + 1
        logits = _read(model, ids, mask, place, cache)


def _read(model: PreTrainedModel, ids: Tensor, mask: Tensor, place: Tensor, cache: DynamicCache) -> Tensor:
    """Let a model read tokens [rows, new] behind those of the cache: logits of what comes next, [rows, vocabulary]."""
    output = model(
        ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def _read_as_tree(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
    """Let a model read prompts as one tree: the cache of their left-padded rows, and the logits behind each."""
    tree = whole_tree([Wanted(index, ids, 0) for index, ids in enumerate(prompts)])
    nodes = [tree.places[index] for index in range(len(prompts))]
    last = torch.tensor([one[-1] for one in nodes])
    read = DynamicCache(config=model.config)
    arguments = tree_arguments(tree, model.device) | {"use_cache": True, "past_key_values": read}
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
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    logprobs = logits.log_softmax(dim=-1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(dim=-1)
    else:
        tokens = _inverse_cdf(_nucleus(logprobs, sampling.top_p), generators)
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)


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
