"""Log-probs of given tokens under a causal model: what sequences share is computed once, in batches of similar size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from charter.inference import scoring_metrics as metrics
from charter.inference.prefix_tree import Tree, Wanted, trees_of
from charter.inference.torch_model import final_logits, left_padded

# Rows times positions whose logits are held at once: 1024 of a 50,000-token vocabulary are 200 MB.
_LOGIT_POSITIONS = 1024
# Most difference in nats between the two ways to compute, in float32 and in shorter types.
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """``answer_ids`` after ``prompt_ids``; ``index`` is its place in the call."""

    index: int
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt_ids) + len(self.answer_ids)


class Scorer:
    """Scores tokens under one model. Every method blocks, and runs where the model does.

    With ``share`` the tokens that sequences begin with are computed once for all of a call. It is switched off for a
    model that does not give the same numbers then: attention windows, recurrent layers, positions by another rule.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, max_batch_tokens: int, *, share: bool) -> None:
        self._model = model
        self._pad_id = pad_id
        self._max_batch_tokens = max_batch_tokens
        self.shares = share and _full_attention(model) and self._agrees()

    @torch.inference_mode()
    def next_token_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> Tensor:
        """Log-probs, float32 [prompts, choices], of each choice as the next token, over the whole vocabulary."""
        chosen = torch.tensor(choices, device=self._model.device)
        rows: dict[int, Tensor] = {}

        def read(index: int, logits: Tensor) -> None:
            rows[index] = logits[0].log_softmax(dim=-1)[chosen].cpu()

        self._run([Wanted(index, ids, len(ids) - 1) for index, ids in enumerate(prompts)], read)
        return torch.stack([rows[index] for index in range(len(prompts))])

    @torch.inference_mode()
    def answer_logprobs(self, answers: Sequence[Answer]) -> list[float]:
        """Sum of the log-probs of each answer's tokens after its prompt, in nats. No answer may be empty."""
        totals: dict[int, float] = {}

        def read(index: int, logits: Tensor) -> None:
            targets = torch.tensor(answers[index].answer_ids, device=logits.device).unsqueeze(1)
            chosen = logits.gather(1, targets).squeeze(1) - logits.logsumexp(dim=-1)
            totals[index] = float(chosen.double().sum())

        # The last token predicts nothing that is asked for, so it is not run.
        sequences = [
            Wanted(index, [*one.prompt_ids, *one.answer_ids][:-1], len(one.prompt_ids) - 1)
            for index, one in enumerate(answers)
        ]
        self._run(sequences, read)
        return [totals[index] for index in range(len(answers))]

    def _run(self, sequences: Sequence[Wanted], read: Callable[[int, Tensor], None]) -> None:
        """Hand the logits, float32 [asked, vocabulary], of each sequence to ``read``."""
        metrics.GIVEN.inc(sum(len(one.ids) for one in sequences))
        if self.shares:
            self._run_trees(list(trees_of(sequences)), read)
        else:
            self._run_plain(sequences, read)

    def _run_trees(self, trees: Sequence[Tree], read: Callable[[int, Tensor], None]) -> None:
        metrics.COMPUTED.inc(sum(len(tree.ids) for tree in trees))
        for batch in _batches(trees, lambda tree: (len(tree.ids), tree.asked), self._max_batch_tokens):
            keep = max(tree.asked for tree in batch)
            logits = _finite(tree_logits(self._model, batch, self._pad_id, keep))
            for row, tree in enumerate(batch):
                for index, places in tree.places.items():
                    read(index, logits[row, [keep - tree.asked + place for place in places]])

    def _run_plain(self, sequences: Sequence[Wanted], read: Callable[[int, Tensor], None]) -> None:
        metrics.COMPUTED.inc(sum(len(one.ids) for one in sequences))

        def size(one: Wanted) -> tuple[int, int]:
            return len(one.ids), len(one.ids) - one.first

        for batch in _batches(sequences, size, self._max_batch_tokens):
            ids, mask = left_padded([one.ids for one in batch], self._pad_id, self._model.device)
            logits = _finite(final_logits(self._model, ids, mask, keep=max(size(one)[1] for one in batch)))
            for row, one in enumerate(batch):
                read(one.index, logits[row, -size(one)[1] :])

    @torch.inference_mode()
    def _agrees(self) -> bool:
        """Whether both ways give the same numbers, on three short sequences that share their beginning."""
        count = int(self._model.config.get_text_config().vocab_size)
        ids = [(7919 * step) % count for step in range(1, 13)]
        sequences = [Wanted(0, ids[:9], 4), Wanted(1, [*ids[:6], *ids[9:]], 5), Wanted(2, ids[:7], 6)]
        found: list[dict[int, Tensor]] = [{}, {}]
        self._run_trees(list(trees_of(sequences)), found[0].__setitem__)
        self._run_plain(sequences, found[1].__setitem__)
        tolerance = _TOLERANCE.get(self._model.dtype, _COARSE_TOLERANCE)
        return all(
            torch.allclose(found[0][index].log_softmax(-1), found[1][index].log_softmax(-1), rtol=0, atol=tolerance)
            for index in range(len(sequences))
        )


def tree_logits(model: PreTrainedModel, trees: Sequence[Tree], pad_id: int, keep: int) -> Tensor:
    """Logits, float32 [trees, keep, vocabulary], of the last ``keep`` tokens of trees padded on the left."""
    width = max(len(tree.ids) for tree in trees)
    ids = np.full((len(trees), width), pad_id, dtype=np.int64)
    depths = np.zeros((len(trees), width), dtype=np.int64)
    # Padding sees itself: a row that sees nothing has no softmax.
    visible = np.broadcast_to(np.eye(width, dtype=np.bool_), (len(trees), width, width)).copy()
    for row, tree in enumerate(trees):
        start = width - len(tree.ids)
        ids[row, start:], depths[row, start:], visible[row, start:, start:] = tree.ids, tree.depths, tree.visible
    device = model.device
    output: Any = model(
        torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(visible).unsqueeze(1).to(device),
        position_ids=torch.from_numpy(depths).to(device),
        use_cache=False,
        logits_to_keep=keep,
    )
    logits: Tensor = output.logits
    return logits.float()


def _full_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that comes before, with PyTorch's attention, which takes any mask."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    return layers == {"full_attention"} and not window and "sdpa" in str(model.config._attn_implementation)


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the model's logits are not finite: its weights are broken")
    return logits


def _batches(items: Sequence[Any], size: Callable[[Any], tuple[int, int]], max_tokens: int) -> Iterator[list[Any]]:
    """Group items of similar size (tokens, asked logits): at most ``max_tokens`` with padding, and bounded logits.

    At least one each. Large ones come first, so that a batch that does not fit in memory fails early.
    """
    batch: list[Any] = []
    for item in sorted(items, key=size, reverse=True):
        sizes = [size(one) for one in (*batch, item)]
        padded = len(sizes) * max(tokens for tokens, _ in sizes)
        positions = len(sizes) * max(asked for _, asked in sizes)
        if batch and (padded > max_tokens or positions > _LOGIT_POSITIONS):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
