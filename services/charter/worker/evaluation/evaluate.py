"""An evaluation from its spec to its files: each model answers, then each judge compares what is not stored yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Protocol

from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder, StartLikelihood, StoredReply
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.spec import EvaluateSpec, changes, pairs_of
from charter.evaluation.compare.texts import gives_log_probs
from charter.runs.results import LeftOut
from charter.v1 import evaluation_pb2, judge_pb2, policy_pb2
from charter.worker.clients.failed import UNAVAILABLE, Failed, failure_of
from charter.worker.errors import RunError
from charter.worker.evaluation.answers import Asked, answers, served_model
from charter.worker.evaluation.failures import FailureCount
from charter.worker.evaluation.judgements import Pair, judgements, served_judge
from charter.worker.evaluation.likelihood import Said, likelihoods
from charter.worker.evaluation.replies import replies
from charter.worker.evaluation.served import about_judge, about_model, same_as_before
from charter.worker.seeds import derive_seed


class Servers(Protocol):
    """Has a model or a judge served while the block lasts, and gives the address of the service."""

    def model(self, model: evaluation_pb2.EvaluatedModel) -> AbstractContextManager[str]:
        """A policy service of the model."""

    def judge(self, judge: evaluation_pb2.EvaluationJudge) -> AbstractContextManager[str]:
        """A judge service."""


# Stage, items that are done, items in all, and what was left out of them, in words.
Report = Callable[[str, int, int, str], None]


def evaluate(
    spec: EvaluateSpec, prompts: Sequence[EvaluatedPrompt], folder: EvaluationFolder, servers: Servers, report: Report
) -> None:
    """Have every model answer and every judge compare what is not stored yet.

    Raises ``RunError`` when the folder is of another spec, what serves is not what served before, too much failed or
    something cannot be reached; ``ServiceError``, ``StateFileError``, ``OSError``. All that came until then is kept.
    """
    before = folder.read_spec()
    if before is not None and (changed := changes(before, spec, folder.stored_names())):
        raise RunError(
            f"{folder.path} was begun with another spec: {', '.join(changed)} changed, and what is stored is not to "
            "that. Go back to it, or give the new one another name"
        )
    folder.begin(spec, prompts)
    for model in spec.models:
        _answer(spec, model, prompts, folder, servers, report)
    _score(spec, prompts, folder, servers, report)
    for judge in spec.judges:
        with _on_demand(servers.judge(judge)) as address:
            _judge(spec, judge, prompts, folder, address, report)
            _classify(spec, judge, prompts, folder, address, report)
    folder.settle(spec)


def _answer(
    spec: EvaluateSpec,
    model: evaluation_pb2.EvaluatedModel,
    prompts: Sequence[EvaluatedPrompt],
    folder: EvaluationFolder,
    servers: Servers,
    report: Report,
) -> None:
    known = folder.read_answers()
    items = [
        # The same for every model: what differs between their answers is the models.
        Asked(prompt, sample, derive_seed(spec.seed, "answer", prompt.key, sample))
        for prompt in prompts
        for sample in range(spec.answers_per_prompt)
    ]
    stored = [known[key] for item in items if (key := (model.name, item.prompt.key, item.sample)) in known]
    missing = [item for item in items if (model.name, item.prompt.key, item.sample) not in known]
    stage = f"answers of {model.name}"
    count = FailureCount(
        stage,
        len(items),
        spec.failures.max_share,
        LeftOut.of(len(stored), [one.failure for one in stored if one.failure]),
    )
    report(stage, len(stored), len(items), count.so_far.in_words())
    if not missing:
        return
    with servers.model(model) as address:
        about = about_model(model, served_model(address))
        same_as_before(folder, "models", model.name, about, bound=any(name == model.name for name, _, _ in known))
        version = int(about["weight_version"])
        for done, (item, found) in enumerate(answers(address, missing, spec.sampling, version), len(stored) + 1):
            folder.add_answer(_stored_answer(model.name, item, found, version))
            count.add(found if isinstance(found, Failed) else None)
            report(stage, done, len(items), count.so_far.in_words())


def _stored_answer(model: str, item: Asked, found: policy_pb2.Sample | Failed, version: int) -> Answer:
    begun = Answer(model, item.prompt.key, item.sample, item.seed, item.prompt.dimension, weight_version=version)
    if isinstance(found, Failed):
        return replace(begun, failure=found.kind, reason=found.reason)
    counted = found.counted_tokens if found.HasField("counted_tokens") else len(found.token_ids) or None
    cut_off = found.finish_reason == policy_pb2.FINISH_REASON_LENGTH
    return replace(begun, text=found.text, tokens=counted, cut_off=cut_off)


def _score(
    spec: EvaluateSpec, prompts: Sequence[EvaluatedPrompt], folder: EvaluationFolder, servers: Servers, report: Report
) -> None:
    """Have the start model say how likely each answer is, where it gives log-probs of what others wrote."""
    if not gives_log_probs(folder.read_served(), spec.start):
        return
    known = folder.read_likelihoods()
    items = _said(spec, prompts, folder.read_answers())
    stored = [one for item in items if (one := known.get((spec.start, *item.key))) is not None]
    missing = [item for item in items if (spec.start, *item.key) not in known]
    count = LeftOut.of(len(stored), [one.failure for one in stored if one.failure])
    stage = f"answers under {spec.start}"
    report(stage, len(stored), len(items), count.in_words())
    if not missing:
        return
    start = next(model for model in spec.models if model.name == spec.start)
    with servers.model(start) as address:
        about = about_model(start, served_model(address))
        same_as_before(folder, "models", start.name, about, bound=True)
        scored = likelihoods(address, missing, int(about["weight_version"]))
        for done, (item, found) in enumerate(scored, len(stored) + 1):
            if isinstance(found, Failed):
                folder.add_likelihood(StartLikelihood(start.name, *item.key, failure=found.kind, reason=found.reason))
            else:
                folder.add_likelihood(StartLikelihood(start.name, *item.key, nats=found.nats, tokens=found.tokens))
            count += LeftOut.of(1, [found.kind] if isinstance(found, Failed) else [])
            report(stage, done, len(items), count.in_words())


def _judge(
    spec: EvaluateSpec,
    judge: evaluation_pb2.EvaluationJudge,
    prompts: Sequence[EvaluatedPrompt],
    folder: EvaluationFolder,
    address: Callable[[], str],
    report: Report,
) -> None:
    by_key, known = folder.read_answers(), folder.read_judgements()
    stored: list[Compared] = []
    missing: list[tuple[str, str, list[Pair]]] = []
    for model_a, model_b in pairs_of(spec):
        pairs = _pairs(spec, prompts, by_key, model_a, model_b)
        # Of a prompt whose dimension is another now, other principles judge.
        old = {
            (pair.prompt.key, pair.sample): one
            for pair in pairs
            if (one := known.get((judge.name, model_a, model_b, pair.prompt.key, pair.sample))) is not None
            and one.dimension == pair.prompt.dimension
        }
        stored += old.values()
        missing.append((model_a, model_b, [pair for pair in pairs if (pair.prompt.key, pair.sample) not in old]))
    total = len(stored) + sum(len(pairs) for _, _, pairs in missing)
    stage = f"judgements of {judge.name}"
    failed = [failure.kind for one in stored if (failure := failure_of(one.judgement)) is not None]
    count = FailureCount(stage, total, spec.failures.max_share, LeftOut.of(len(stored), failed))
    report(stage, len(stored), total, count.so_far.in_words())
    if len(stored) == total:
        return
    options = judge_pb2.JudgingOptions(
        method=judge.method, ensemble_size=judge.ensemble_size, seed=derive_seed(spec.seed, "principles")
    )
    done = len(stored)
    unreached: Failed | None = None
    served = served_judge(address())
    about = about_judge(judge, served.info, served.constitution)
    same_as_before(folder, "judges", judge.name, about, bound=any(key[0] == judge.name for key in known))
    for model_a, model_b, pairs in missing:
        for pair, judgement in judgements(address(), pairs, options, served.constitution):
            failure = failure_of(judgement)
            if failure is not None and failure.kind == UNAVAILABLE:
                # It may pass: the same command asks again.
                unreached = failure
                continue
            prompt = pair.prompt
            folder.add_judgement(
                Compared(judge.name, model_a, model_b, prompt.key, pair.sample, prompt.dimension, judgement)
            )
            done += 1
            count.add(failure)
            report(stage, done, total, count.so_far.in_words())
        if unreached is not None:
            raise RunError(_unreached(judge.name, unreached))


def _classify(
    spec: EvaluateSpec,
    judge: evaluation_pb2.EvaluationJudge,
    prompts: Sequence[EvaluatedPrompt],
    folder: EvaluationFolder,
    address: Callable[[], str],
    report: Report,
) -> None:
    """Have a judge say of each answer to a harmful prompt or a look-alike whether it declines."""
    items = _said(spec, [prompt for prompt in prompts if prompt.kind], folder.read_answers())
    if not items:
        return
    stored = folder.read_replies()
    # Of a prompt whose dimension is another now, other principles judge.
    known = {
        item.key: one
        for item in items
        if (one := stored.get((judge.name, *item.key))) is not None and one.dimension == item.prompt.dimension
    }
    missing = [item for item in items if item.key not in known]
    stage = f"refusals by {judge.name}"
    failures = LeftOut.of(len(known), [one.failure for one in known.values() if one.failure])
    count = FailureCount(stage, len(items), spec.failures.max_share, failures)
    report(stage, len(known), len(items), count.so_far.in_words())
    if not missing:
        return
    options = judge_pb2.JudgingOptions(ensemble_size=judge.ensemble_size, seed=derive_seed(spec.seed, "principles"))
    bound = any(key[0] == judge.name for log in (stored, folder.read_judgements()) for key in log)
    served = served_judge(address())
    about = about_judge(judge, served.info, served.constitution)
    same_as_before(folder, "judges", judge.name, about, bound=bound)
    for done, (item, found) in enumerate(replies(address(), missing, options, served.constitution), len(known) + 1):
        begun = StoredReply(judge.name, *item.key, item.prompt.dimension)
        if not isinstance(found, Failed):
            folder.add_reply(replace(begun, distribution=tuple(found)))
        elif found.kind == UNAVAILABLE:
            # It may pass: the same command asks again.
            raise RunError(_unreached(judge.name, found))
        else:
            folder.add_reply(replace(begun, failure=found.kind, reason=found.reason))
        count.add(found if isinstance(found, Failed) else None)
        report(stage, done, len(items), count.so_far.in_words())


@contextmanager
def _on_demand(serving: AbstractContextManager[str]) -> Iterator[Callable[[], str]]:
    """Gives what serves when it is first called, and gives its address from then on while the block lasts."""
    with ExitStack() as stack:
        yield cache(lambda: stack.enter_context(serving))


def _unreached(judge: str, failure: Failed) -> str:
    return f"the model of judge {judge} cannot be reached: {failure.reason}. The same command goes on"


def _said(
    spec: EvaluateSpec, prompts: Sequence[EvaluatedPrompt], by_key: dict[tuple[str, str, int], Answer]
) -> list[Said]:
    """The answers to these prompts that did not fail, those to one prompt together."""
    return [
        Said(model.name, prompt, sample, answer.text)
        for prompt in prompts
        for model in spec.models
        for sample in range(spec.answers_per_prompt)
        if not (answer := by_key[model.name, prompt.key, sample]).failure
    ]


def _pairs(
    spec: EvaluateSpec, prompts: Sequence[EvaluatedPrompt], by_key: dict[tuple[str, str, int], Answer], a: str, b: str
) -> list[Pair]:
    """The answers of two models, where both have one."""
    found = []
    for prompt in prompts:
        for sample in range(spec.answers_per_prompt):
            one, other = by_key[a, prompt.key, sample], by_key[b, prompt.key, sample]
            if not one.failure and not other.failure:
                found.append(Pair(prompt, sample, one.text, other.text))
    return found
