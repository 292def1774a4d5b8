"""The folder of an evaluation: what was asked, and each answer and judgement as a line, from which it can go on.

spec.json          the spec with its defaults
prompts.jsonl      the prompts that are answered
served.json        what answered and judged: models, weights, constitutions
answers.jsonl      one line an answer, or why there is none
likelihoods.jsonl  one line an answer: how likely it is under the start model
judgements.jsonl   one line a comparison of two answers by one judge
replies.jsonl      one line an answer to a harmful prompt or a look-alike: whether it declines, by one judge
votes.jsonl        one line a vote of a person (docs/feedback.md), or one that is taken back
result.json        the figures, which can be computed again from the files above
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format

from charter.atomic_files import write_text
from charter.chat import ChatMessage
from charter.evaluation.compare.asked import ADVICE, AskedFolder
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.spec import EvaluateSpec, spec_from_json, spec_to_json
from charter.jsonl import append_line
from charter.state_files import read_log, read_text
from charter.v1 import judge_pb2

T = TypeVar("T")


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
class StartLikelihood:
    """How likely an answer of ``model`` is under ``start``: its negative log-prob in nats, or why there is none."""

    start: str
    model: str
    prompt: str
    sample: int
    nats: float = 0.0
    tokens: int = 0
    failure: str = ""
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Start, model, prompt and sample."""
        return self.start, self.model, self.prompt, self.sample


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


@dataclass(frozen=True, slots=True)
class StoredReply:
    """What a judge said of an answer: P of each kind of ``figures.refusals.Reply``, or why it said nothing."""

    judge: str
    model: str
    prompt: str
    sample: int
    dimension: str
    distribution: tuple[float, ...] = ()
    failure: str = ""
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Judge, model, prompt and sample."""
        return self.judge, self.model, self.prompt, self.sample


class EvaluationFolder(AskedFolder):
    """Paths of an evaluation's folder, and what is in its files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.spec = path / "spec.json"
        self.prompts = path / "prompts.jsonl"
        self.answers = path / "answers.jsonl"
        self.likelihoods = path / "likelihoods.jsonl"
        self.judgements = path / "judgements.jsonl"
        self.replies = path / "replies.jsonl"
        self.result = path / "result.json"
        self.report = path / "report.html"

    def read_spec(self) -> EvaluateSpec | None:
        """The spec that it was begun with; None before."""
        advice = "Bring it back from a copy, or evaluate anew"
        return read_text(self.spec, spec_from_json, advice) if self.spec.exists() else None

    def begin(self, spec: EvaluateSpec, prompts: Iterable[EvaluatedPrompt]) -> None:
        """Write what is asked."""
        write_text(self.prompts, "".join(_prompt_line(prompt) + "\n" for prompt in prompts))
        write_text(self.spec, spec_to_json(spec))

    def read_prompts(self) -> list[EvaluatedPrompt]:
        """The prompts that are answered."""
        return read_log(self.prompts, _prompt, ADVICE)

    def read_answers(self) -> dict[tuple[str, str, int], Answer]:
        """Every answer that is stored, by its key."""
        return {one.key: one for one in read_log(self.answers, lambda line: Answer(**json.loads(line)), ADVICE)}

    def add_answer(self, answer: Answer) -> None:
        """Store an answer."""
        append_line(self.answers, answer_line(answer))

    def read_likelihoods(self) -> dict[tuple[str, str, str, int], StartLikelihood]:
        """Every likelihood that is stored, by its key."""
        read = read_log(self.likelihoods, lambda line: StartLikelihood(**json.loads(line)), ADVICE)
        return {one.key: one for one in read}

    def add_likelihood(self, likelihood: StartLikelihood) -> None:
        """Store a likelihood."""
        append_line(self.likelihoods, answer_line(likelihood))

    def read_judgements(self) -> dict[tuple[str, str, str, str, int], Compared]:
        """Every judgement that is stored, by its key."""
        return {one.key: one for one in read_log(self.judgements, _compared, ADVICE)}

    def add_judgement(self, compared: Compared) -> None:
        """Store a judgement."""
        append_line(self.judgements, compared_line(compared))

    def read_replies(self) -> dict[tuple[str, str, str, int], StoredReply]:
        """What is stored of kinds of answers, by its key."""
        return {one.key: one for one in read_log(self.replies, _reply, ADVICE)}

    def add_reply(self, reply: StoredReply) -> None:
        """Store of which kind an answer is."""
        append_line(self.replies, answer_line(reply))

    def stored_names(self) -> dict[str, set[str]]:
        """The ``models`` that anything is stored of, and the ``judges``."""
        judged = {key[0] for key in self.read_judgements()} | {key[0] for key in self.read_replies()}
        return {"models": {one.model for one in self.read_answers().values()}, "judges": judged}

    def settle(self, spec: EvaluateSpec) -> None:
        """Put the lines of all logs into the order of the spec, whatever order they came in."""
        models = {model.name: place for place, model in enumerate(spec.models)}
        judges = {judge.name: place for place, judge in enumerate(spec.judges)}
        prompts = {prompt.key: place for place, prompt in enumerate(self.read_prompts())}

        # What a spec before this one asked for, and this one does not, stays at the end.
        def place(places: dict[str, int], name: str) -> tuple[int, str]:
            return places.get(name, len(places)), name

        def settled(stored: Mapping[tuple[Any, ...], T], *places: dict[str, int]) -> list[T]:
            """Rows by their keys: names, each with its own places, and the sample."""
            return [stored[key] for key in sorted(stored, key=lambda key: (*map(place, places, key), key[-1]))]

        _rewrite(self.answers, settled(self.read_answers(), models, prompts), answer_line)
        _rewrite(self.likelihoods, settled(self.read_likelihoods(), models, models, prompts), answer_line)
        _rewrite(self.judgements, settled(self.read_judgements(), judges, models, models, prompts), compared_line)
        _rewrite(self.replies, settled(self.read_replies(), judges, models, prompts), answer_line)


def _rewrite(path: Path, rows: Iterable[T], line: Callable[[T], str]) -> None:
    write_text(path, "".join(line(row) + "\n" for row in rows))


def _prompt_line(prompt: EvaluatedPrompt) -> str:
    messages = [{"role": one.role, "content": one.content} for one in prompt.messages]
    about = {"key": prompt.key, "dimension": prompt.dimension, "kind": prompt.kind, "messages": messages}
    return json.dumps(about, ensure_ascii=False)


def _prompt(line: str) -> EvaluatedPrompt:
    found = json.loads(line)
    messages = tuple(ChatMessage(one["role"], one["content"]) for one in found["messages"])
    return EvaluatedPrompt(found["key"], messages, found["dimension"], found.get("kind", ""))


def _reply(line: str) -> StoredReply:
    found = json.loads(line)
    return StoredReply(**{**found, "distribution": tuple(found["distribution"])})


def answer_line(one: Answer | StartLikelihood | StoredReply) -> str:
    """A line of a log that has one for each answer, such as ``answers.jsonl``."""
    return json.dumps(asdict(one), ensure_ascii=False)


def compared_line(one: Compared) -> str:
    """A line of ``judgements.jsonl``."""
    about = {name: getattr(one, name) for name in ("judge", "model_a", "model_b", "prompt", "sample", "dimension")}
    found = json_format.MessageToDict(one.judgement, preserving_proto_field_name=True)
    return json.dumps(about | {"judgement": found}, ensure_ascii=False)


def _compared(line: str) -> Compared:
    found: dict[str, Any] = json.loads(line)
    judgement = json_format.ParseDict(found.pop("judgement"), judge_pb2.Judgement())
    return Compared(**found, judgement=judgement)
