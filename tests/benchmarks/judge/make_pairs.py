"""Writes the labelled pairs of docs/measurements/judge.md. They hold harmful text: write them outside the project."""

import argparse
from pathlib import Path

from charter.data.pairs.labelled import write_labelled_pairs
from charter.evaluation.judge.labelled_pairs import harmlessness_pairs, helpfulness_pairs

ANSWERS = Path(__file__).parents[3] / "examples" / "labelled" / "helpful_answers.jsonl"


def main() -> None:
    """Read the unpacked pyrit package and the shipped answers, write one JSONL file for each dimension."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pyrit", type=Path, required=True, help="folder of the harm CSVs in the unpacked pyrit 1.1.0")
    parser.add_argument("--output", type=Path, required=True, help="folder for harmless.jsonl and helpful.jsonl")
    parser.add_argument("--most-per-prompt", type=int, default=8, help="harmlessness pairs of one prompt")
    parser.add_argument("--longest-answer", type=int, help="characters; longer answers to harmful prompts are left out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    harmless = harmlessness_pairs(
        arguments.pyrit, most_per_prompt=arguments.most_per_prompt, longest_answer=arguments.longest_answer
    )
    write_labelled_pairs(arguments.output / "harmless.jsonl", harmless)
    write_labelled_pairs(arguments.output / "helpful.jsonl", helpfulness_pairs(ANSWERS))


if __name__ == "__main__":
    main()
