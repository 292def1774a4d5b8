"""Each model is compared with itself as it came before anything but its own forward pass is relied on.

Its own numbers are those of each sequence alone, with the attention that its code spells out and plain linear layers.
What gives others takes a plain path: sequences one by one, rows one by one, layers not packed.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from charter.inference.local.attention import use_charter_attention, use_own_attention
from charter.inference.local.prefix_tree import Tree, Wanted, whole_tree
from charter.inference.local.tree_model import WINDOWS, windows

logger = logging.getLogger("charter.inference")

# Most difference between two ways to compute, relative to the largest number, in float32 and in shorter types.
_TOLERANCE = {torch.float32: 1e-4}
_COARSE_TOLERANCE = 0.05
# Width of attention windows for the comparison: real ones would need long sequences.
_NARROW = 8
# Of a sequence without a limit.
UNLIMITED = sys.maxsize


def longest_in_row(model: PreTrainedModel, arguments: Callable[[Tree], dict[str, Any]]) -> int:
    """Switch a model to Charter's attention if it computes the same, and find out which sequences may share a row.

    Returns how many tokens each of them may have so that the model's states are those of the sequence alone; 0 if no
    two sequences may. Raises ``ValueError`` for a model whose states depend on the tokens behind them.

    Args:
        model: as it came, or its backbone.
        arguments: what its backbone takes so that its one row is a tree.
    """
    sequences = probes(model)
    tree = whole_tree([Wanted(index, ids, 0) for index, ids in enumerate(sequences)])
    backbone = backbone_of(model)

    def alone() -> list[Tensor]:
        return [backbone(_row(ids, model.device), use_cache=False).last_hidden_state[0] for ids in sequences]

    def in_row() -> list[Tensor]:
        states = backbone(**arguments(tree)).last_hidden_state[0]
        return [states[tree.places[index]] for index in range(len(sequences))]

    widths = windows(model.config)
    with torch.no_grad():
        use_own_attention(model)
        own = alone()
        _require_causal(model, sequences, own)
        with narrowed(model):
            own_narrowed = alone() if widths else []
        use_charter_attention(model)
        if not agrees(model, alone, lambda: own, "Charter's attention"):
            use_own_attention(model)
            return 0
        if not agrees(model, in_row, lambda: own, "several sequences in one row"):
            return 0
        with narrowed(model):
            beyond = not widths or agrees(
                model, in_row, lambda: own_narrowed, "sequences in one row that are longer than its window"
            )
    return min([settled_context(model.config), *([] if beyond else widths)])


def _require_causal(model: PreTrainedModel, sequences: Sequence[Sequence[int]], states: Sequence[Tensor]) -> None:
    """BERT and its like do not write text from left to right unless their config says ``is_decoder``."""
    first = states[0]
    for ids, other in zip(sequences[1:], states[1:], strict=True):
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(sequences[0], ids, strict=False)))
        tolerance = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE) * float(first.abs().max())
        if float((first[:shared] - other[:shared]).abs().max()) > tolerance:
            raise ValueError(
                f"{type(model).__name__} with its config lets tokens see those behind them: use a causal language model"
            )


def agrees(
    model: PreTrainedModel,
    compute: Callable[[], Sequence[Tensor]],
    own_numbers: Callable[[], Sequence[Tensor]],
    what: str,
) -> bool:
    """Whether a way to compute gives a model's own numbers, which are asked for afterwards; an error counts as no.

    ``what`` names the way in the log.
    """
    try:
        found = compute()
    except Exception as error:  # noqa: BLE001 (whatever a model's code raises: it is not computed in this way)
        logger.warning("%s does without %s (%s: %s)", type(model).__name__, what, type(error).__name__, error)
        return False
    own = own_numbers()
    tolerance = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)
    largest = max(float(one.abs().max()) for one in own)
    apart = max(float((one - other).abs().max()) for one, other in zip(found, own, strict=True))
    # Written so that NaN does not agree.
    if not apart <= tolerance * largest:
        logger.warning("%s does without %s (off by %.2g of %.2g)", type(model).__name__, what, apart, largest)
        return False
    return True


def backbone_of(model: PreTrainedModel) -> Any:
    """The part of a causal language model below its head; a backbone itself."""
    base = model.base_model
    if base is model and model.get_output_embeddings() is not None:
        # Where the library's name for it is wrong, as in Llama 4.
        return next(child for child in model.children() if isinstance(child, PreTrainedModel))
    return base


def probes(model: PreTrainedModel) -> list[list[int]]:
    """Three short sequences that share their beginning, two of them more; longer than a narrowed window."""
    count = int(model.config.get_text_config().vocab_size)
    ids = [(7919 * step) % count for step in range(1, 33)]
    return [ids[:20], [*ids[:16], *ids[20:30]], [*ids[:10], *ids[30:]]]


def own_logprobs(model: PreTrainedModel, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Tensor:
    """Log-probs of an answer's tokens in one pass over the sequence alone, on the CPU; float32 [answer tokens]."""
    ids = _row([*prompt_ids, *answer_ids], model.device)
    logits: Tensor = model(ids[:, :-1], use_cache=False).logits[0, len(prompt_ids) - 1 :]
    return logits.float().log_softmax(dim=-1).gather(1, ids[0, len(prompt_ids) :].unsqueeze(1))[:, 0].cpu()


def settled_context(config: PreTrainedConfig) -> int:
    """Most tokens of a sequence for which the numbers of a token do not depend on how many come after it.

    LongRoPE (Ding et al. 2024, arXiv 2402.13753) turns positions by other factors as soon as any position of a call is
    beyond the context that the model first learned, dynamic NTK beyond that of its config.
    """
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    # Some models have one for each type of layer.
    limits = [UNLIMITED]
    for rope in [ropes, *(one for one in ropes.values() if isinstance(one, dict))]:
        if rope.get("rope_type") == "longrope":
            limits.append(int(rope["original_max_position_embeddings"]))
        elif "dynamic" in str(rope.get("rope_type")):
            limits.append(int(text.max_position_embeddings))
    return min(limits)


def state_width(backbone: PreTrainedModel) -> int:
    """Numbers of a final hidden state; some models project it to another width than that of their layers."""
    with torch.no_grad():
        return int(backbone(_row([0], backbone.device), use_cache=False).last_hidden_state.shape[-1])


@contextmanager
def narrowed(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block every attention window of a model is a few tokens wide."""
    with ExitStack() as stack:
        for holder in [*_configs(model.config), *model.modules()]:
            for name in WINDOWS:
                if isinstance(before := vars(holder).get(name), int) and before > _NARROW:
                    stack.callback(setattr, holder, name, before)
                    setattr(holder, name, _NARROW)
        yield


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and those inside it."""
    yield config
    for one in vars(config).values():
        if isinstance(one, PreTrainedConfig):
            yield from _configs(one)


def _row(ids: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([ids], device=device)
