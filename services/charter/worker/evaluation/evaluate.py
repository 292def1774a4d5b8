"""An evaluation from its spec to its files: each model answers, then each judge compares what is not stored yet."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder
from charter.evaluation.compare.spec import EvaluateSpec, changes, pairs_of
from charter.evaluation.compare.trained import training_of
from charter.evaluation.compare.weights import weights_digest
from charter.runs.results import LeftOut
from charter.v1 import evaluation_pb2, judge_pb2, policy_pb2, types_pb2
from charter.worker.clients.failed import UNAVAILABLE, Failed, failure_of
from charter.worker.errors import RunError
from charter.worker.evaluation.answers import Asked, answers, served_model
from charter.worker.evaluation.failures import FailureCount
from charter.worker.evaluation.judgements import Pair, judgements, served_judge
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
    spec: EvaluateSpec, prompts: Sequence[TaskPrompt], folder: EvaluationFolder, servers: Servers, report: Report
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
    for judge in spec.judges:
        _judge(spec, judge, prompts, folder, servers, report)
    folder.settle(spec)


def _answer(
    spec: EvaluateSpec,
    model: evaluation_pb2.EvaluatedModel,
    prompts: Sequence[TaskPrompt],
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
        about = _about_model(model, served_model(address))
        _same_as_before(folder, "models", model.name, about, bound=any(name == model.name for name, _, _ in known))
        version = int(about["weight_version"])
        for done, (item, found) in enumerate(answers(address, missing, spec.sampling, version), len(stored) + 1):
            folder.add_answer(_stored_answer(model.name, item, found, version))
            count.add(found if isinstance(found, Failed) else None)
            report(stage, done, len(items), count.so_far.in_words())


def _about_model(model: evaluation_pb2.EvaluatedModel, served: types_pb2.ModelInfo) -> dict[str, Any]:
    """What is kept of a model that answers."""
    return {
        "model": served.model,
        "engine": served.engine,
        "parameters": served.parameters,
        "weight_version": served.weight_version,
        "weight_digest": served.weight_digest,
        # Of the files: a service knows the digest only of weights that were sent to it.
        "files_digest": "" if model.address or model.engine in ("openai", "fake") else weights_digest(served.model),
        "chat_form": served.chat_form,
        "trained": training_of(model),
    }


def _stored_answer(model: str, item: Asked, found: policy_pb2.Sample | Failed, version: int) -> Answer:
    begun = Answer(model, item.prompt.key, item.sample, item.seed, item.prompt.dimension, weight_version=version)
    if isinstance(found, Failed):
        return replace(begun, failure=found.kind, reason=found.reason)
    counted = found.counted_tokens if found.HasField("counted_tokens") else len(found.token_ids) or None
    cut_off = found.finish_reason == policy_pb2.FINISH_REASON_LENGTH
    return replace(begun, text=found.text, tokens=counted, cut_off=cut_off)


def _judge(
    spec: EvaluateSpec,
    judge: evaluation_pb2.EvaluationJudge,
    prompts: Sequence[TaskPrompt],
    folder: EvaluationFolder,
    servers: Servers,
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
    with servers.judge(judge) as address:
        served = served_judge(address)
        about = _about_judge(judge, served.info, served.constitution)
        _same_as_before(folder, "judges", judge.name, about, bound=any(key[0] == judge.name for key in known))
        for model_a, model_b, pairs in missing:
            for pair, judgement in judgements(address, pairs, options, served.constitution):
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
                raise RunError(
                    f"the model of judge {judge.name} cannot be reached: {unreached.reason}. The same command goes on"
                )


def _pairs(
    spec: EvaluateSpec, prompts: Sequence[TaskPrompt], by_key: dict[tuple[str, str, int], Answer], a: str, b: str
) -> list[Pair]:
    """The answers of two models, where both have one."""
    found = []
    for prompt in prompts:
        for sample in range(spec.answers_per_prompt):
            one, other = by_key[a, prompt.key, sample], by_key[b, prompt.key, sample]
            if not one.failure and not other.failure:
                found.append(Pair(prompt, sample, one.text, other.text))
    return found


def _about_judge(
    judge: evaluation_pb2.EvaluationJudge,
    info: judge_pb2.JudgeServiceGetModelInfoResponse,
    constitution: judge_pb2.Constitution,
) -> dict[str, Any]:
    """What is kept of a judge."""
    method = judge_pb2.JudgingMethod.Name(judge.method or info.default_method).removeprefix("JUDGING_METHOD_").lower()
    return {
        "model": info.model.model,
        "engine": info.model.engine,
        "method": method,
        "chain_of_thought": info.default_chain_of_thought and not judge.method,
        "calibration_digest": info.calibration.digest,
        "constitution_name": constitution.name,
        "constitution_version": constitution.version,
        "constitution_digest": constitution.digest,
        "files_digest": "" if judge.address or judge.engine in ("openai", "fake") else weights_digest(info.model.model),
    }


def _same_as_before(folder: EvaluationFolder, kind: str, name: str, about: dict[str, Any], *, bound: bool) -> None:
    """Keep what serves; raises ``RunError`` when earlier answers or judgements, which ``bound`` says are there, are
    another's.
    """
    before = folder.read_served()[kind].get(name)
    if before is None or not bound:
        folder.note_served(kind, name, about)
        return
    changed = [field for field in about if field != "trained" and before.get(field) != about[field]]
    if changed:
        now = "; ".join(f"{field} was {before.get(field)!r} and is {about[field]!r}" for field in changed)
        raise RunError(
            f"{kind[:-1]} `{name}` is not what it was when {folder.path} was begun: {now}. Bring it back, or give it "
            "another name in the spec"
        )
