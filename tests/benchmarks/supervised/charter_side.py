"""Charter's side: a step of the supervised stage's learner for each turn."""

from argparse import Namespace

import torch
from charter.worker.supervised.corpus import Item
from charter.worker.supervised.learner import TokenLearner
from charter.worker.training.models import LanguageModel

from tests.benchmarks.supervised.sides import RATE, arguments, sequences
from tests.benchmarks.turns import Turns


def main(options: Namespace) -> None:
    """Set up, then a step for each turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = sequences(options)
    model = LanguageModel.load(options.model, device)
    learner = TokenLearner(model, device, "supervised", options.precision == "bfloat16")
    turns = Turns()
    for start in range(0, len(found), options.batch):
        turns.wait()
        figures = learner.update([Item((one,)) for one in found[start : start + options.batch]], RATE)
        turns.done(tokens=figures["target_tokens"], loss=figures["train_loss"])


if __name__ == "__main__":
    main(arguments(__doc__ or "").parse_args())
