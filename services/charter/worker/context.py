"""What every stage of a run works with."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from charter.data.prompts import TaskPrompt
from charter.inference.chat_template import ChatTokenizer
from charter.rpc.messages import proto_messages
from charter.runs.artifacts import Artifacts
from charter.spec.facts import needs_preference_model
from charter.v1 import judge_pb2, run_pb2
from charter.worker.clients.services import Services
from charter.worker.prompts import PromptSets
from charter.worker.reporter import Reporter
from charter.worker.training import ranks
from charter.worker.training.lead import Leader
from charter.worker.training.starting import policy_model

# The policy serves the weights of ``policy.model`` as this version; every learning stage and every PPO step that
# changes them adds one.
FIRST_VERSION = 1
# The preference service serves this run's preference model as this version.
PREFERENCE_VERSION = 1


class StartingWeights(NamedTuple):
    """Hub id or folder of a policy, and the version that the policy service serves it as."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its filled spec, its folder, the services, and whom it reports to."""

    id: str
    spec: run_pb2.RunSpec
    artifacts: Artifacts
    services: Services
    reporter: Reporter
    leader: Leader
    prompts: PromptSets
    constitution: judge_pb2.Constitution
    # The policy's; None where only texts are learned.
    tokenizer: ChatTokenizer | None

    @property
    def device(self) -> torch.device:
        """Where the worker computes."""
        return ranks.device()

    @property
    def resting_device(self) -> torch.device:
        """Where the worker keeps its models while the services work."""
        turns = self.spec.services.gpu_sharing == run_pb2.GPU_SHARING_TAKE_TURNS
        return torch.device("cpu") if turns else self.device

    @property
    def needs_preference_model(self) -> bool:
        """As the function of that name says of the spec."""
        return needs_preference_model(self.spec)

    @property
    def start(self) -> StartingWeights:
        """What comes next starts from: the last learning stage's policy, or ``policy.model`` before the first.

        Answers are sampled from it, RL begins with it, has it as reference, and is compared with it at the end.
        """
        learned = self.artifacts.learned
        model = str(self.artifacts.folder / learned[-1]) if learned else policy_model(self.spec)
        return StartingWeights(model, FIRST_VERSION + len(learned))

    def judging_options(self, seed: int) -> judge_pb2.JudgingOptions:
        """How the spec wants pairs to be judged."""
        return judge_pb2.JudgingOptions(
            method=self.spec.judge.method, ensemble_size=self.spec.judge.ensemble_size, seed=seed
        )

    def comparison_item(self, name: str, prompt: TaskPrompt, answer_a: str, answer_b: str) -> judge_pb2.ComparisonItem:
        """Two answers as the judge is asked about them; ``name`` is what its judgement comes back under."""
        return judge_pb2.ComparisonItem(
            id=name,
            prompt=proto_messages(prompt.messages),
            answer_a=answer_a,
            answer_b=answer_b,
            dimension=self.judged_dimension(prompt.dimension),
        )

    def answer_item(self, name: str, prompt: TaskPrompt, answer: str) -> judge_pb2.AnswerItem:
        """An answer as the judge is asked to rate it: answers to one prompt are rated by the same principles."""
        return judge_pb2.AnswerItem(
            id=name,
            prompt=proto_messages(prompt.messages),
            answer=answer,
            dimension=self.judged_dimension(prompt.dimension),
            group=prompt.key,
        )

    def judged_dimension(self, dimension: str) -> str:
        """The dimension to judge by: the prompt's own when the constitution has principles of it, else all of them."""
        return dimension if any(one.dimension == dimension for one in self.constitution.principles) else ""
