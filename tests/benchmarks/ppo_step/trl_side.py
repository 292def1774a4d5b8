"""TRL's side: its experimental PPOTrainer on the same prompts, with two optimiser steps for each batch."""

import tempfile
from argparse import Namespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from tests.benchmarks.ppo_step.paired import arguments, prompt_ids
from tests.benchmarks.turns import Turns


class InTurns(TrainerCallback):
    """Each of TRL's steps waits for its turn."""

    def __init__(self) -> None:
        self.turns = Turns()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step is next."""
        self.turns.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        self.turns.done()
        self.turns.wait()


def main(options: Namespace) -> None:
    """Set up, then a step for each turn."""
    # Not among the requirements: the comparison names its folder.
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    # It must differ from EOS, by which the trainer finds the end of an answer.
    tokenizer.pad_token = next(one for one in tokenizer.all_special_tokens if one != tokenizer.eos_token)

    def scored() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    def policy() -> Any:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    # One batch of all episodes in two minibatches of one micro-batch each: its optimiser steps only when as many
    # micro-batches as are accumulated have been seen.
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        per_device_train_batch_size=options.episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=options.episodes,
        total_episodes=options.episodes * (options.steps + 1),
        response_length=options.tokens,
        temperature=1.0,
        stop_token="eos",
        learning_rate=3e-6,
        bf16=options.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=scored(),
        value_model=scored(),
        train_dataset=Dataset.from_dict({"input_ids": prompt_ids(options)}),
        eval_dataset=Dataset.from_dict({"input_ids": [[1]]}),
        callbacks=[InTurns()],
    )
    trainer.train()


if __name__ == "__main__":
    main(arguments(__doc__ or "").parse_args())
