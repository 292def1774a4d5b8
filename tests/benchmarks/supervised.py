"""Tokens that are learned per CPU second in supervised fine-tuning, against a padded loop of transformers.

    python -m tests.benchmarks.supervised MODEL [CONVERSATIONS]

with a model folder and, if there is one, a file of conversations; without, conversations of random words whose lengths
are spread as those of chat data are (log-normal, 30 to 700 tokens). Both sides learn the same tokens of the same
batches with AdamW in float32 on one thread, in turns; the padded loop groups conversations of similar length, which is
its best case. CPU seconds, not wall time: then a busy machine does not decide.
"""

import argparse
import itertools
import random
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from charter.chat import ChatMessage
from charter.data.conversations import conversations
from charter.inference.chat_template import ChatTokenizer
from charter.worker.clients.failed import Failed
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import Item
from charter.worker.supervised.learner import BACKWARD_TOKENS, TokenLearner
from charter.worker.training.batches import TrainingSequence
from charter.worker.training.models import LanguageModel
from rich.console import Console
from transformers import AutoModelForCausalLM

CONSOLE = Console(width=120)
CPU = torch.device("cpu")
BATCH, MOST_TOKENS, RATE = 16, 700, 1e-5
TEXT = "the sea rises when rain falls on high ground and rivers carry it slowly back again to where it was"


def batches(model: str, source: str | None, count: int) -> list[list[TrainingSequence]]:
    """So many batches, the same for both sides."""
    draw = random.Random(0)

    def made() -> tuple[ChatMessage, ...]:
        def words(mean: float) -> str:
            return " ".join(draw.choices(TEXT.split(), k=max(5, round(draw.lognormvariate(mean, 0.8)))))

        turns = draw.choice((1, 1, 2))
        pairs = ((ChatMessage("user", words(3.0)), ChatMessage("assistant", words(4.2))) for _ in range(turns))
        return tuple(itertools.chain(*pairs))

    reader = ConversationReader(ChatTokenizer.load(model), MOST_TOKENS)
    found = (one.messages for one in conversations(source)) if source else (made() for _ in itertools.count())
    read = (one for messages in found if not isinstance(one := reader.read(messages), Failed))
    sequences = list(itertools.islice((one for several in read for one in several), BATCH * count))
    return [sequences[start : start + BATCH] for start in range(0, len(sequences), BATCH)]


def padded_step(model: Any, optimizer: torch.optim.Optimizer) -> Callable[[Sequence[TrainingSequence]], float]:
    """One step of a plain loop: rows of similar length, padded, at most as many tokens as Charter's micro-batches."""

    def step(batch: Sequence[TrainingSequence]) -> float:
        tokens, total = sum(len(one.targets) for one in batch), 0.0
        groups: list[list[TrainingSequence]] = []
        for one in sorted(batch, key=lambda one: -len(one.ids)):
            if not groups or (len(groups[-1]) + 1) * len(groups[-1][0].ids) > BACKWARD_TOKENS:
                groups.append([])
            groups[-1].append(one)
        for group in groups:
            width = len(group[0].ids)
            ids, mask = torch.zeros(len(group), width, dtype=torch.int64), torch.zeros(len(group), width)
            labels = torch.full((len(group), width), -100)
            for row, one in enumerate(group):
                ids[row, : len(one.ids)] = torch.tensor(list(one.ids))
                mask[row, : len(one.ids)] = 1
                labels[row, list(one.states)] = torch.tensor(list(one.targets))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / tokens
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def main() -> None:
    """Print tokens per CPU second of both, their ratio, and by how much the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("conversations", nargs="?")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = batches(arguments.model, arguments.conversations, arguments.steps)
    plain = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, eps=1e-8, weight_decay=0.0, fused=True)
    learner = TokenLearner(LanguageModel.load(arguments.model, CPU), CPU, "supervised")
    sides: dict[str, Callable[[Sequence[TrainingSequence]], float]] = {
        "padded": padded_step(plain, optimizer),
        "charter": lambda batch: learner.update([Item((one,)) for one in batch], RATE)["train_loss"],
    }
    seconds = dict.fromkeys(sides, 0.0)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for place, batch in enumerate(work):
        for name in sorted(sides, reverse=bool(place % 2)):
            start = time.process_time()
            losses[name].append(sides[name](batch))
            seconds[name] += time.process_time() - start
    learned = sum(len(one.targets) for batch in work for one in batch)
    read = sum(len(one.ids) for batch in work for one in batch)
    CONSOLE.print(f"{len(work)} steps of {BATCH} conversations, {read} tokens read, {learned} learned")
    for name, took in seconds.items():
        CONSOLE.print(f"{name}: {learned / took:.1f} learned tokens per CPU second")
    apart = max(abs(one - other) for one, other in zip(losses["padded"], losses["charter"], strict=True))
    CONSOLE.print(f"ratio {seconds['padded'] / seconds['charter']:.2f}; losses differ by at most {apart:.1e}")
    CONSOLE.print(f"peak memory of both together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
