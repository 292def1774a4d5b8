"""Asks judges and scorers for labels of the pairs of a study, and keeps each as it comes."""

from collections import Counter
from collections.abc import Sequence

from charter.data.prompts import TaskPrompt
from charter.held_out import prompt_key
from charter.outcomes import outcome_of, probability_of
from charter.rpc.channel import connect
from charter.rpc.messages import chat_messages
from charter.runs.results import LeftOut
from charter.study.folder import StudyFolder
from charter.study.label_log import Labels, add_labels, unlabelled
from charter.study.labels import run_id_of
from charter.study.spec import CheckedStudy
from charter.v1 import evaluation_pb2, judge_pb2, preference_pb2_grpc, run_pb2, types_pb2
from charter.worker.clients.failed import UNAVAILABLE, Failed, failure_of, stored_failure, unjudged
from charter.worker.clients.scoring import Scores, add_scores, in_order
from charter.worker.errors import RunError
from charter.worker.evaluation.evaluate import Report, Servers
from charter.worker.evaluation.failures import FailureCount
from charter.worker.evaluation.judgements import Pair, judgements, served_judge
from charter.worker.evaluation.served import about_judge, same_as_before
from charter.worker.labels import add_judgement
from charter.worker.seeds import derive_seed

# Of scorers' labels.
SCORES = "scores"
# Pairs whose answers are scored together.
_AT_ONCE = 32


class Asking:
    """What one labeller is asked: pairs that it has not labelled yet, or could not.

    Raises ``TooManyFailuresError`` when too many labels failed, and ``StateFileError``.
    """

    def __init__(
        self,
        study: CheckedStudy,
        name: str,
        pairs: Sequence[types_pb2.Comparison],
        folder: StudyFolder,
        labels: Labels,
        show: Report,
    ) -> None:
        self._folder, self._labels, self._show = folder, labels[name], show
        self.name, self.run_id = name, run_id_of(study.spec, name)
        # Of a prompt whose dimension is another now, other principles judge.
        stored = [one for pair in pairs if (one := self._labels.get(pair.id)) and one.dimension == pair.dimension]
        done = {one.id for one in stored}
        self.missing = [pair for pair in pairs if pair.id not in done]
        self.begun = bool(stored)
        self._stage, self._done, self._all = f"labels of {name}", len(stored), len(pairs)
        failed = [failure.kind for one in stored if (failure := stored_failure(one)) is not None]
        self._count = FailureCount(
            self._stage, self._all, study.base.failures.max_share, LeftOut.of(self._done, failed)
        )
        self._tell()

    def add(self, label: types_pb2.Comparison) -> None:
        """Keep a label, or that there is none."""
        add_labels(self._folder, [label])
        self._labels[label.id] = label
        self._done += 1
        self._count.add(stored_failure(label))
        self._tell()

    def _tell(self) -> None:
        self._show(self._stage, self._done, self._all, self._count.so_far.in_words())


def ask_judge(
    study: CheckedStudy,
    judge: evaluation_pb2.EvaluationJudge,
    asking: Asking,
    pairs: Sequence[types_pb2.Comparison],
    folder: StudyFolder,
    servers: Servers,
) -> None:
    """Have a judge, with its defaults, compare what is missing of ``pairs``.

    Raises ``RunError`` when it is another than before or its model cannot be reached, ``ServiceError``.
    """
    if not asking.missing:
        return
    options = judge_pb2.JudgingOptions(
        method=judge.method, ensemble_size=judge.ensemble_size, seed=derive_seed(study.spec.seed, "labels")
    )
    missing = {pair.id for pair in asking.missing}
    asked = {one: pair for one, pair in _numbered(pairs) if pair.id in missing}
    unreached: Failed | None = None
    with servers.judge(judge) as address:
        served = served_judge(address)
        about = about_judge(judge, served.info, served.constitution) | {"ensemble_size": judge.ensemble_size}
        same_as_before(folder, "judges", judge.name, about, bound=asking.begun)
        for one, judgement in judgements(address, list(asked), options, served.constitution):
            failure = failure_of(judgement)
            if failure is not None and failure.kind == UNAVAILABLE:
                # It may pass: the same command asks again.
                unreached = failure
            else:
                label = unlabelled(asked[one], asking.run_id)
                add_judgement(label, judgement)
                asking.add(label)
    if unreached is not None:
        raise RunError(
            f"the model of judge {judge.name} cannot be reached: {unreached.reason}. The same command goes on"
        )


def ask_scorer(scorer: run_pb2.ComparedService, asking: Asking) -> None:
    """Have a service score the answers of what is missing: P(A is better) is the logistic function of A's lead.

    Raises ``ServiceError``.
    """
    for start in range(0, len(asking.missing), _AT_ONCE):
        chunk = asking.missing[start : start + _AT_ONCE]
        items = [
            (chat_messages(pair.prompt), answer.text) for pair in chunk for answer in (pair.answer_a, pair.answer_b)
        ]
        scores: Scores = {}
        with connect(scorer.address) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            add_scores(scores, "scoring", scorer.address, stub, items, _heard)
        found = in_order(scores)
        for pair, a, b in zip(chunk, found[::2], found[1::2], strict=True):
            asking.add(_scored(pair, a, b, asking.run_id, scorer.name))


def _heard() -> None:
    """Nobody waits."""


def _numbered(pairs: Sequence[types_pb2.Comparison]) -> list[tuple[Pair, types_pb2.Comparison]]:
    """As a judge is asked; pairs of one prompt are told apart by their order."""
    before: Counter[str] = Counter()
    found = []
    for pair in pairs:
        messages = chat_messages(pair.prompt)
        prompt = TaskPrompt(prompt_key(messages), messages, pair.dimension)
        found.append((Pair(prompt, before[prompt.key], pair.answer_a.text, pair.answer_b.text), pair))
        before[prompt.key] += 1
    return found


def _scored(
    pair: types_pb2.Comparison, a: float | Failed, b: float | Failed, run_id: str, scorer: str
) -> types_pb2.Comparison:
    label = unlabelled(pair, run_id)
    label.source = types_pb2.LABEL_SOURCE_AI
    label.labeller = scorer
    label.method = SCORES
    if isinstance(a, Failed) or isinstance(b, Failed):
        failed = next(one for one in (a, b) if isinstance(one, Failed))
        label.outcome = types_pb2.OUTCOME_INVALID
        label.judgements.extend(unjudged(failed).principles)
        return label
    label.probability_a = probability_of(a - b)
    label.outcome = outcome_of(label.probability_a)
    return label
