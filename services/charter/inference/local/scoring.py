"""Log-probs of given tokens under a causal model: what sequences share is computed once, in batches of similar size."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from charter.inference import scoring_metrics as metrics
from charter.inference.local.model import LoadedModel, final_logits, left_padded, likeliest
from charter.inference.local.model_check import agrees, narrowed, own_logprobs, probes
from charter.inference.local.prefix_tree import Tree, Wanted, trees_of
from charter.inference.local.tree_model import tree_arguments, windows

# Rows times positions whose logits are held at once: 1024 of a 50,000-token vocabulary are 200 MB.
_LOGIT_POSITIONS = 1024


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


@dataclass(frozen=True, slots=True)
class Places:
    """Of a sequence of tokens: log-probs of those behind the first [tokens - 1], the likeliest behind each [tokens]."""

    logprobs: tuple[float, ...]
    likeliest: list[list[tuple[int, float]]]


class Scorer:
    """Scores tokens under one model. Every method blocks, and runs where the model does.

    With ``share`` the tokens that sequences begin with are computed once for all of a call, where the model can.
    Otherwise sequences are computed in padded batches, or one by one by a model that gives other numbers in those.
    """

    def __init__(self, loaded: LoadedModel, pad_id: int, max_batch_tokens: int, *, share: bool) -> None:
        self._model = loaded.model
        self._pad_id = pad_id
        self._max_batch_tokens = max_batch_tokens
        self._longest_shared = 0
        self._pads = True
        self._pads = self._is_right("in padded rows")
        if share and loaded.longest_in_row:
            self._longest_shared = loaded.longest_in_row
            self._longest_shared *= self._is_right("what begins alike once")

    @property
    def shares(self) -> bool:
        """What sequences begin with is computed once."""
        return self._longest_shared > 0

    @torch.inference_mode()
    def _is_right(self, way: str) -> bool:
        """Compare the present way of scoring with the model's own numbers, also past its windows."""
        answers = [Answer(index, ids[:9], ids[9:]) for index, ids in enumerate(probes(self._model))]

        def scored() -> list[Tensor]:
            return [torch.tensor(self.answer_logprobs(answers))]

        def own() -> list[Tensor]:
            sums = [own_logprobs(self._model, one.prompt_ids, one.answer_ids).sum() for one in answers]
            return [torch.stack(sums)]

        if not agrees(self._model, scored, own, f"scoring {way}"):
            return False
        if self.shares or not windows(self._model.config):
            return True
        with narrowed(self._model):
            return agrees(self._model, scored, own, f"scoring {way}, past its window")

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

    @torch.inference_mode()
    def place_logprobs(self, sequences: Sequence[Sequence[int]], top: int) -> list[Places]:
        """Log-probs of each token of some sequences, and the likeliest ``top`` (at least 1) in each place."""
        rows: dict[int, Places] = {}

        def read(index: int, logits: Tensor) -> None:
            logprobs = logits.log_softmax(dim=-1)
            targets = torch.tensor(sequences[index][1:], dtype=torch.long, device=logits.device).unsqueeze(1)
            own = logprobs[:-1].gather(1, targets).squeeze(1)
            rows[index] = Places(tuple(own.tolist()), likeliest(logprobs, top))

        self._run([Wanted(index, ids, 0) for index, ids in enumerate(sequences)], read)
        return [rows[index] for index in range(len(sequences))]

    def _run(self, sequences: Sequence[Wanted], read: Callable[[int, Tensor], None]) -> None:
        """Hand the logits, float32 [asked, vocabulary], of each sequence to ``read``."""
        metrics.GIVEN.inc(sum(len(one.ids) for one in sequences))
        shared = [one for one in sequences if len(one.ids) <= self._longest_shared]
        self._run_trees(trees_of(shared, self._max_batch_tokens, _LOGIT_POSITIONS), read)
        self._run_plain([one for one in sequences if len(one.ids) > self._longest_shared], read)

    def _run_trees(self, trees: Iterable[Tree], read: Callable[[int, Tensor], None]) -> None:
        device = self._model.device
        for tree in trees:
            metrics.COMPUTED.inc(len(tree.ids))
            asked = sorted({place for places in tree.places.values() for place in places})
            output: Any = self._model(
                **tree_arguments(tree, device, self._model.config), logits_to_keep=torch.tensor(asked, device=device)
            )
            logits = _finite(output.logits[0].float())
            row_of = {place: row for row, place in enumerate(asked)}
            for index, places in tree.places.items():
                read(index, logits[[row_of[place] for place in places]])

    def _run_plain(self, sequences: Sequence[Wanted], read: Callable[[int, Tensor], None]) -> None:
        metrics.COMPUTED.inc(sum(len(one.ids) for one in sequences))

        def size(one: Wanted) -> tuple[int, int]:
            return len(one.ids), len(one.ids) - one.first

        for batch in _batches(sequences, size, self._max_batch_tokens if self._pads else 0):
            ids, mask = left_padded([one.ids for one in batch], self._pad_id, self._model.device)
            keep = max(size(one)[1] for one in batch)
            logits = _finite(final_logits(self._model, ids, mask if self._pads else None, keep))
            for row, one in enumerate(batch):
                read(one.index, logits[row, -size(one)[1] :])


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the model's logits are not finite: its weights are broken")
    return logits


def _batches(items: Sequence[Any], size: Callable[[Any], tuple[int, int]], max_tokens: int) -> Iterator[list[Any]]:
    """Group items of similar size (tokens, asked logits): at most ``max_tokens`` with padding, and bounded logits.

    One each at least. Large ones come first, so that a batch that does not fit in memory fails early.
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
