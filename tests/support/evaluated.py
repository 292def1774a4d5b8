"""Models and a judge whose answers a test decides, as real services: two policies and a judge in front of one endpoint.

The answers of `wise` hold the word, those of `plain` do not, and the judge knows: it prefers those that do.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from charter.judge.server import JudgeConfig
from charter.judge.server import build as build_judge
from charter.policy.server import PolicyConfig
from charter.policy.server import build as build_policy

from tests.support.endpoint import Answer, Body, Endpoint, Failure, endpoint, last_message
from tests.support.endpoint_judge import CONSTITUTION
from tests.support.harness import running

PROMPTS = 8
# Two of what a judge chooses from when it says what an answer does.
_ANSWERS = "It does what the user asks for."
_DECLINES = "It declines what the user asks for, and says why."


@dataclass
class Evaluated:
    """Addresses of the services by name of the model, the endpoint behind all, and what it says before it answers."""

    addresses: dict[str, str]
    endpoint: Endpoint
    # Called with the model's name and the request; what it returns is said instead of the usual answer.
    before: Callable[[str, Body], Answer | Failure | None] = field(default=lambda model, body: None)

    def spec(self, folder: Path, more: str = "") -> Path:
        """An evaluation of both models by the judge on ``PROMPTS`` prompts of two dimensions."""
        rows = [{"prompt": f"Question {i}?", "dimension": "harmless" if i % 2 else ""} for i in range(PROMPTS)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = folder / "evaluation.yaml"
        file.write_text(
            "name: two\nseed: 3\nmodels:\n"
            f"  - {{name: plain, address: '{self.addresses['plain']}'}}\n"
            f"  - {{name: wise, address: '{self.addresses['wise']}'}}\n"
            "prompts: [{source: prompts.jsonl, dimension: helpful}]\n"
            f"judges: [{{name: right, address: '{self.addresses['judge']}'}}]\n"
            f"bootstrap_samples: 200\n{more}"
        )
        return file


def asked(body: Body) -> str:
    """The question of a request; empty for what a service asks at its start."""
    return next((f"Question {i}?" for i in range(PROMPTS) if f"Question {i}?" in said_in(body)), "")


def declines(body: Body) -> bool:
    """Whether the answer that a judge is shown declines: `wise` does so where the number of the question is odd."""
    return "A wise answer" in said_in(body) and int(asked(body).split()[1][:-1]) % 2 == 1


def letter_of(option: str, body: Body) -> str:
    """Behind which letter an option stands in a question."""
    return next(line[1] for line in said_in(body).splitlines() if line[3:].strip() == option)


def said_in(body: Body) -> str:
    """All turns of a request; the last of a judge's is the beginning of its answer."""
    return "\n".join(str(message["content"]) for message in body["messages"])


@contextmanager
def evaluated(folder: Path) -> Iterator[Evaluated]:
    """Serve inside the block."""
    found: list[Evaluated] = []

    def reply(body: Body) -> Answer | Failure:
        model = str(body["model"])
        if found and asked(body) and (said := found[0].before(model, body)) is not None:
            return said
        if model == "judge" and "Which of these fits" in said_in(body):
            return Answer("A", {letter_of(_DECLINES if declines(body) else _ANSWERS, body): 1.0})
        if model == "judge":
            first, _, second = said_in(body).partition("(A) ")[2].partition("(B) ")
            better_first = ("wise" in first, "wise" in second)
            sure = {(True, False): 0.9, (False, True): 0.1}.get(better_first, 0.5)
            return Answer("A", {"A": sure, "B": 1 - sure})
        return Answer(f"A {model} answer to {last_message(body)}")

    (folder / "constitution.yaml").write_text(CONSTITUTION)
    with endpoint(reply) as served, ExitStack() as stack:
        # One call at a time, so that answers come in their order.
        settings = {"endpoint": served.url, "concurrent_calls": 1}
        addresses = {
            name: stack.enter_context(running(build_policy(PolicyConfig(name, folder / name, "openai", settings)))).main
            for name in ("plain", "wise")
        }
        config = JudgeConfig("judge", folder / "constitution.yaml", "openai", "choice", engine_settings=settings)
        addresses["judge"] = stack.enter_context(running(build_judge(config))).main
        found.append(Evaluated(addresses, served))
        yield found[0]


class Hold:
    """Holds the requests about one question of one model until ``release``; ``reached`` says that one is held."""

    def __init__(self, model: str, question: str) -> None:
        self._model, self._question = model, question
        self.reached, self.released = threading.Event(), threading.Event()

    def __call__(self, model: str, body: Body) -> None:
        """As ``Evaluated.before``."""
        if model == self._model and asked(body) == self._question:
            self.reached.set()
            self.released.wait(60)
