"""A study's file with everything that it names, as small as can be, for what looks at it without a service."""

import json
from pathlib import Path
from typing import Any

from charter.study.load import load_study
from charter.study.spec import CheckedStudy

CONSTITUTION = """\
name: short
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which?", critique: b, revise: c, follow: d, oppose: e}
"""
RUN = """\
name: base
policy: {model: org/start}
judge: {model: org/judge, constitution: c.yaml}
prompts: {train: [train.jsonl], held_out: [held.jsonl]}
ppo: {steps: 4, episodes_per_step: 4, minibatches: 1}
evaluation: {prompts: 4}
"""
ARMS = """\
  - {name: rlhf, labels: imported}
  - {name: rlaif, labels: judge}
  - {name: sft, run: {supervised: {data: [{source: chat.jsonl}]}, ppo: null}}
  - {name: sft-rlaif, after: sft, labels: judge}
"""
STUDY = """\
name: small
run: below/run.yaml
seeds: [1, 2]
pairs: {{sources: [human.jsonl]}}
judges:
  - {{name: judge, model: org/judge, constitution: below/c.yaml, method: contrast}}
arms:
{arms}evaluation:
  prompts: [{{source: eval.jsonl}}]
  judges: [{{name: third, model: org/third, constitution: below/c.yaml, method: choice}}]
{more}"""


def study_file(folder: Path, arms: str = ARMS, more: str = "", run: str = RUN) -> Path:
    """Write it, with the run spec in a folder below."""
    (folder / "below").mkdir()
    (folder / "below" / "c.yaml").write_text(CONSTITUTION)
    (folder / "below" / "run.yaml").write_text(run)
    for name, place, count in (("train", "below/", 12), ("held", "below/", 8), ("eval", "", 6)):
        rows = [{"prompt": f"{name} {i}?", "dimension": "helpful" if i % 2 else "harmless"} for i in range(count)]
        _write(folder / f"{place}{name}.jsonl", rows)
    sides = {"chosen": "good", "rejected": "bad"}
    rows = [{"prompt": f"pair {i}?", **sides, "dimension": "helpful" if i % 2 else "harmless"} for i in range(20)]
    _write(folder / "human.jsonl", rows)
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    _write(folder / "chat.jsonl", [{"messages": turns}])
    file = folder / "study.yaml"
    file.write_text(STUDY.format(arms=arms, more=more))
    return file


def checked_study(folder: Path, arms: str = ARMS, more: str = "", run: str = RUN) -> CheckedStudy:
    """Write and load it; its home is in the folder."""
    return load_study(study_file(folder, arms, more, run), folder / "home")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
