"""The folder of an evaluation: what was asked, and each answer and judgement as a line, from which it can go on.

spec.json          the spec with its defaults
prompts.jsonl      the prompts that are answered
served.json        what answered and judged: models, weights, constitutions
answers.jsonl      one line an answer, or why there is none
judgements.jsonl   one line a comparison of two answers by one judge
result.json        the figures, which can be computed again from the files above
"""

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format

from charter.atomic_files import write_json, write_text
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.spec import EvaluateSpec, spec_from_json, spec_to_json
from charter.jsonl import append_line
from charter.state_files import StateFileError, read_json, read_log
from charter.v1 import judge_pb2

T = TypeVar("T")

_ADVICE = "Bring it back from a copy, or delete that line: what it held is then asked again"


class EvaluationBusyError(RuntimeError):
    """Another command works in this folder."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a prompt, or why it said nothing (``failure``, a kind, with ``reason`` for a person).

    ``sample`` tells its answers to one prompt apart. ``tokens`` count EOS, and are None where an endpoint counts none;
    ``cut_off`` says that the token limit ended the answer.
    """

    model: str
    prompt: str
    sample: int
    seed: int
    dimension: str
    text: str = ""
    tokens: int | None = None
    cut_off: bool = False
    weight_version: int = 0
    failure: str = ""
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Model, prompt and sample."""
        return self.model, self.prompt, self.sample


@dataclass(frozen=True, slots=True)
class Compared:
    """What a judge said of the answers of two models to a prompt; the judgement's A is ``model_a``'s."""

    judge: str
    model_a: str
    model_b: str
    prompt: str
    sample: int
    dimension: str
    judgement: judge_pb2.Judgement

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Judge, both models, prompt and sample."""
        return self.judge, self.model_a, self.model_b, self.prompt, self.sample

    @property
    def probability_a(self) -> float | None:
        """P(the answer of ``model_a`` is better), both orders averaged; None for a failed judgement."""
        return self.judgement.probability_a if self.judgement.HasField("probability_a") else None


class EvaluationFolder:
    """Paths of an evaluation's folder, and what is in its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.prompts = path / "prompts.jsonl"
        self.served = path / "served.json"
        self.answers = path / "answers.jsonl"
        self.judgements = path / "judgements.jsonl"
        self.result = path / "result.json"
        self.report = path / "report.html"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work in the folder, which is made, while no other command does. Raises ``EvaluationBusyError``."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise EvaluationBusyError(f"another `charter evaluate` works in {self.path}: let it end") from error
            yield

    def read_spec(self) -> EvaluateSpec | None:
        """The spec that it was begun with; None before."""
        if not self.spec.exists():
            return None
        try:
            return spec_from_json(self.spec.read_text(encoding="utf-8"))
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise StateFileError(str(self.spec), error, "Bring it back from a copy, or evaluate anew") from error

    def begin(self, spec: EvaluateSpec, prompts: Iterable[TaskPrompt]) -> None:
        """Write what is asked."""
        write_text(self.prompts, "".join(_prompt_line(prompt) + "\n" for prompt in prompts))
        write_text(self.spec, spec_to_json(spec))

    def read_prompts(self) -> list[TaskPrompt]:
        """The prompts that are answered."""
        return read_log(self.prompts, _prompt, _ADVICE)

    def read_served(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What served: by ``models`` and ``judges``, by name."""
        if not self.served.exists():
            return {"models": {}, "judges": {}}
        return read_json(self.served, lambda found: {kind: dict(found[kind]) for kind in ("models", "judges")}, _ADVICE)

    def note_served(self, kind: str, name: str, about: dict[str, Any]) -> None:
        """Keep what served a model or a judge."""
        found = self.read_served()
        found[kind][name] = about
        write_json(self.served, found)

    def read_answers(self) -> dict[tuple[str, str, int], Answer]:
        """Every answer that is stored, by its key."""
        return {one.key: one for one in read_log(self.answers, lambda line: Answer(**json.loads(line)), _ADVICE)}

    def add_answer(self, answer: Answer) -> None:
        """Store an answer."""
        append_line(self.answers, _answer_line(answer))

    def read_judgements(self) -> dict[tuple[str, str, str, str, int], Compared]:
        """Every judgement that is stored, by its key."""
        return {one.key: one for one in read_log(self.judgements, _compared, _ADVICE)}

    def add_judgement(self, compared: Compared) -> None:
        """Store a judgement."""
        append_line(self.judgements, _compared_line(compared))

    def stored_names(self) -> dict[str, set[str]]:
        """The ``models`` that anything is stored of, and the ``judges``."""
        judged = {one.judge for one in self.read_judgements().values()}
        return {"models": {one.model for one in self.read_answers().values()}, "judges": judged}

    def settle(self, spec: EvaluateSpec) -> None:
        """Put the lines of both logs into the order of the spec, whatever order they came in."""
        models = {model.name: place for place, model in enumerate(spec.models)}
        judges = {judge.name: place for place, judge in enumerate(spec.judges)}
        prompts = {prompt.key: place for place, prompt in enumerate(self.read_prompts())}

        # What a spec before this one asked for, and this one does not, stays at the end.
        def place(places: dict[str, int], name: str) -> tuple[int, str]:
            return places.get(name, len(places)), name

        answers = sorted(
            self.read_answers().values(),
            key=lambda one: (place(models, one.model), place(prompts, one.prompt), one.sample),
        )
        compared = sorted(
            self.read_judgements().values(),
            key=lambda one: (
                place(judges, one.judge),
                place(models, one.model_a),
                place(models, one.model_b),
                place(prompts, one.prompt),
                one.sample,
            ),
        )
        _rewrite(self.answers, answers, _answer_line)
        _rewrite(self.judgements, compared, _compared_line)


def _rewrite(path: Path, rows: Iterable[T], line: Callable[[T], str]) -> None:
    write_text(path, "".join(line(row) + "\n" for row in rows))


def _prompt_line(prompt: TaskPrompt) -> str:
    messages = [{"role": one.role, "content": one.content} for one in prompt.messages]
    return json.dumps({"key": prompt.key, "dimension": prompt.dimension, "messages": messages}, ensure_ascii=False)


def _prompt(line: str) -> TaskPrompt:
    found = json.loads(line)
    messages = tuple(ChatMessage(one["role"], one["content"]) for one in found["messages"])
    return TaskPrompt(found["key"], messages, found["dimension"])


def _answer_line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False)


def _compared_line(one: Compared) -> str:
    about = {name: getattr(one, name) for name in ("judge", "model_a", "model_b", "prompt", "sample", "dimension")}
    found = json_format.MessageToDict(one.judgement, preserving_proto_field_name=True)
    return json.dumps(about | {"judgement": found}, ensure_ascii=False)


def _compared(line: str) -> Compared:
    found: dict[str, Any] = json.loads(line)
    try:
        judgement = json_format.ParseDict(found.pop("judgement"), judge_pb2.Judgement())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
    return Compared(**found, judgement=judgement)
