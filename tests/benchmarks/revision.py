"""Answers, critiques and revisions per second, Charter's engine against a plain loop of `transformers.generate`.

    python -m tests.benchmarks.revision MODEL PROMPTS [--constitution FILE]

with a model folder and a JSONL of prompts. The plain loop has the same prompts in batches of 16, padded on the left.
Both sides do each of the three steps in turn on the texts that Charter's side wrote, so that they read the same; both
sample at temperature 1 until EOS or the same limit.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt, Sampling
from charter.inference.local.engine import TransformersEngine
from charter.judge.drafts import Draft
from charter.judge.text_generation import write_each
from charter.judge.writing import critique_prompt, revision_prompt, write
from charter.spec.constitution import load_constitution
from rich.console import Console
from transformers import AutoModelForCausalLM

CONSOLE = Console(width=120)
BATCH = 16


@dataclass
class Spent:
    """Of one side: time by two clocks, and tokens that it wrote."""

    seconds: float = 0.0
    processor: float = 0.0
    tokens: int = 0


class Clock:
    """Adds what a block takes."""

    def __init__(self, spent: Spent) -> None:
        self._spent = spent

    def __enter__(self) -> None:
        self._start = time.monotonic(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._spent.seconds += time.monotonic() - self._start[0]
        self._spent.processor += time.process_time() - self._start[1]


def plain(model: Any, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], sampling: Sampling) -> int:
    """Batches as they come, padded to their longest. Returns how many tokens were written."""
    written, pad = 0, 0
    stops = torch.tensor(sorted(tokenizer.stop_ids))
    rows_of_all = tokenizer.prompts_ids(prompts)
    for start in range(0, len(rows_of_all), BATCH):
        rows = rows_of_all[start : start + BATCH]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=stops.tolist(),
                pad_token_id=pad,
            )[:, width:]
        ended = torch.isin(found, stops).int()
        written += int((ended.cumsum(1) - ended == 0).sum())
    return written


async def compare(options: argparse.Namespace) -> dict[str, Spent]:
    """Answer, criticise and revise with both."""
    engine = TransformersEngine(options.model, device="cpu", dtype="float32")
    await engine.start()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = ChatTokenizer.load(options.model)
    sampling = Sampling(max_new_tokens=options.tokens, temperature=1.0)
    principles = load_constitution(options.constitution).principles
    lines = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    asked = [(ChatMessage("user", json.loads(line)["prompt"]),) for line in lines]
    spent = {"charter": Spent(), "plain": Spent()}

    async def both(name: str, prompts: Sequence[Prompt]) -> list[str]:
        with Clock(spent["charter"]):
            texts = await write(engine, prompts, sampling)
        spent["charter"].tokens += sum(one.usage.completion_tokens for one in texts)
        with Clock(spent["plain"]):
            spent["plain"].tokens += plain(model, tokenizer, prompts, sampling)
        CONSOLE.print(f"{name}: {', '.join(f'{side} {one.seconds:.1f} s' for side, one in spent.items())} so far")
        return [one.text for one in texts]

    # Both have done some work before.
    await write_each(engine, [Prompt(one) for one in asked[:2]], Sampling(max_new_tokens=4))
    answers = await both("answers", [Prompt(one) for one in asked])
    drafts = [
        Draft(prompt, answer, principles[place % len(principles)])
        for place, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    critiques = await both("critiques", [critique_prompt(draft) for draft in drafts])
    drafts = [replace(draft, critique=critique) for draft, critique in zip(drafts, critiques, strict=True)]
    await both("revisions", [revision_prompt(draft) for draft in drafts])
    await engine.stop()
    return spent


def main() -> None:
    """Print what each side took, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--constitution", type=Path, default=Path("examples/constitutions/general.yaml"))
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a text")
    options = parser.parse_args()
    spent = asyncio.run(compare(options))
    for side, one in spent.items():
        CONSOLE.print(
            f"{side}: {3 * options.count / one.seconds:.2f} texts a second, {one.tokens} tokens, "
            f"{one.processor:.0f} s of processor time"
        )
    ours, theirs = spent["charter"], spent["plain"]
    CONSOLE.print(
        f"Charter is {theirs.seconds / ours.seconds:.2f} times as fast, in processor time "
        f"{theirs.processor / ours.processor:.2f} times"
    )


if __name__ == "__main__":
    main()
