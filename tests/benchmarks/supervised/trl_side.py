"""TRL's side: its SFTTrainer on the same tokens, packed by best fit, or padded in batches of similar lengths."""

import tempfile
from argparse import Namespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.benchmarks.supervised.sides import RATE, arguments, sequences
from tests.benchmarks.turns import Turns


class InTurns(TrainerCallback):
    """Each of TRL's steps waits for its turn. ``seen`` holds the learned tokens and the loss of the step under way."""

    def __init__(self, seen: dict[str, float]) -> None:
        self.turns = Turns()
        self.seen = seen

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step is next."""
        self.turns.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        self.turns.done(tokens=self.seen["tokens"], loss=self.seen["loss"] / self.seen["tokens"])
        self.seen.update(tokens=0, loss=0)
        self.turns.wait()


def main(options: Namespace) -> None:
    """Set up, then a step for each turn."""
    # Not among the requirements: the comparison names its folder.
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = next(one for one in tokenizer.all_special_tokens if one != tokenizer.eos_token)
    found = sequences(options)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for one in found:
        rows["input_ids"].append(list(one.ids))
        learned = {place + 1 for place in one.states}
        rows["completion_mask"].append([int(place in learned) for place in range(len(one.ids))])
    # As many rows in a step that about as many tokens are read as of Charter's batch.
    a_step = sum(len(one.ids) for one in found) / (options.steps + 1)
    batch = max(1, round(a_step / options.max_tokens)) if options.packing else options.batch
    seen = {"tokens": 0.0, "loss": 0.0}

    class Counting(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
            tokens = int((inputs["labels"][:, 1:] != -100).sum())
            found = super().compute_loss(model, inputs, *arguments, **more)
            loss = found[0] if isinstance(found, tuple) else found
            seen["tokens"] += tokens
            seen["loss"] += loss.item() * tokens
            return found

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        max_length=options.max_tokens,
        packing=bool(options.packing),
        train_sampling_strategy="random" if options.packing else "group_by_length",
        completion_only_loss=True,
        per_device_train_batch_size=batch,
        max_steps=options.steps + 1,
        learning_rate=RATE,
        bf16=options.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
    )
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    data = Dataset.from_dict(rows)
    trainer = Counting(
        model=model, args=config, processing_class=tokenizer, train_dataset=data, callbacks=[InTurns(seen)]
    )
    trainer.train()


if __name__ == "__main__":
    main(arguments(__doc__ or "").parse_args())
