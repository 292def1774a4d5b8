"""Samples the pairs of a study: two answers of what all arms start from to each of some training prompts."""

from collections import Counter
from collections.abc import Collection, Iterable

from charter.data.pairs.read import split_of
from charter.data.prompts import TaskPrompt
from charter.held_out import prompt_key
from charter.inference.chat_template import ChatTokenizer
from charter.jsonl import append_line
from charter.rpc.messages import chat_messages, proto_messages
from charter.runs.results import LeftOut
from charter.spec.bad_rows import bad_rows_of
from charter.storage.comparisons import comparison_to_row, content_id, row_to_json
from charter.study.evaluation import start_of
from charter.study.folder import StudyFolder
from charter.study.pairs import Chosen, read_pairs, usable_pairs
from charter.study.spec import START, CheckedStudy
from charter.v1 import policy_pb2, types_pb2
from charter.worker.clients.failed import Failed, stored_failure
from charter.worker.errors import RunError
from charter.worker.evaluation.answers import Asked, answers, served_model
from charter.worker.evaluation.evaluate import Report, Servers
from charter.worker.evaluation.failures import FailureCount
from charter.worker.evaluation.served import about_model, same_as_before
from charter.worker.prompts import load_prompt_sets
from charter.worker.seeds import derive_seed
from charter.worker.training.starting import policy_model

# Pairs whose answers are asked for together.
_AT_ONCE = 16
_STAGE = "pairs of answers"


def sampled_pairs(
    study: CheckedStudy, folder: StudyFolder, evaluated: Collection[str], servers: Servers, show: Report
) -> Chosen:
    """The pairs; those that are missing in ``pairs.jsonl`` are sampled.

    Raises ``RunError`` when those that are there are to other prompts or by another model, or too many failed;
    ``SpecError`` for prompts that cannot be used, ``ServiceError``, ``StateFileError``, ``OSError``.
    """
    base = study.base
    prompts = _prompts(study, evaluated)
    stored = read_pairs(folder)[: len(prompts)]
    if any(prompt_key(chat_messages(one.prompt)) != prompt.key for one, prompt in zip(stored, prompts, strict=False)):
        raise RunError(
            f"{folder.pairs} holds pairs of other prompts than the spec samples now: bring prompts, seed and run spec "
            "back, or give the study another name"
        )
    failed = [failure.kind for one in stored if (failure := _failure(one)) is not None]
    count = FailureCount(_STAGE, len(prompts), base.failures.max_share, LeftOut.of(len(stored), failed))
    show(_STAGE, len(stored), len(prompts), count.so_far.in_words())
    if len(stored) < len(prompts):
        stored += _sample(study, folder, prompts, len(stored), servers, count, show)
    kinds = [failure.kind.replace("_", " ") for one in stored if (failure := _failure(one)) is not None]
    made = [one for one in stored if _failure(one) is None]
    return usable_pairs(made, evaluated, labelled=False, failed=kinds)


def _prompts(study: CheckedStudy, evaluated: Collection[str]) -> list[TaskPrompt]:
    """The prompts that are answered twice, again from the start when there are too few."""
    base = study.base
    sets = load_prompt_sets(base.prompts, ChatTokenizer.load(policy_model(base)), bad_rows_of(base))
    usable = [prompt for prompt in sets.train if prompt.key not in evaluated]
    if not usable:
        raise RunError("all prompts of prompts.train are evaluated too: none is left to sample pairs of")
    return sets.take(usable, 0, study.spec.pairs.sampled, study.spec.seed)


def _sample(
    study: CheckedStudy,
    folder: StudyFolder,
    prompts: list[TaskPrompt],
    begin: int,
    servers: Servers,
    count: FailureCount,
    show: Report,
) -> list[types_pb2.Comparison]:
    base, sampling = study.base, study.base.sampling
    start = start_of(base)
    found: list[types_pb2.Comparison] = []
    with servers.model(start) as address:
        about = about_model(start, served_model(address))
        about |= {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
        same_as_before(folder, "models", START, about, bound=begin > 0)
        version = int(about["weight_version"])
        asked = list(_asked(study.spec.seed, prompts))
        for place in range(begin, len(prompts), _AT_ONCE):
            chunk = asked[place : place + _AT_ONCE]
            answered = {
                (item.prompt.key, item.sample): answer
                for item, answer in answers(address, [one for both in chunk for one in both], sampling, version)
            }
            for both in chunk:
                made = _pair(study, both[0].prompt, [answered[one.prompt.key, one.sample] for one in both])
                append_line(folder.pairs, row_to_json(comparison_to_row(made)))
                found.append(made)
                count.add(_failure(made))
                show(_STAGE, begin + len(found), len(prompts), count.so_far.in_words())
    return found


def _asked(seed: int, prompts: Iterable[TaskPrompt]) -> Iterable[tuple[Asked, Asked]]:
    """Both answers to each prompt; a prompt that comes again gets others."""
    before: Counter[str] = Counter()
    for prompt in prompts:
        first, second = (
            Asked(prompt, sample, derive_seed(seed, "pair", prompt.key, sample))
            for sample in (2 * before[prompt.key], 2 * before[prompt.key] + 1)
        )
        before[prompt.key] += 1
        yield first, second


def _pair(study: CheckedStudy, prompt: TaskPrompt, answered: list[policy_pb2.Sample | Failed]) -> types_pb2.Comparison:
    """Without a label; ``INVALID`` with the reason where an answer failed."""
    model = study.base.policy.model
    both = [
        types_pb2.Answer(text=one.text, model=model, cut_off=one.finish_reason == policy_pb2.FINISH_REASON_LENGTH)
        if isinstance(one, policy_pb2.Sample)
        else types_pb2.Answer(model=model)
        for one in answered
    ]
    pair = types_pb2.Comparison(
        prompt=proto_messages(prompt.messages),
        answer_a=both[0],
        answer_b=both[1],
        source=types_pb2.LABEL_SOURCE_AI,
        outcome=types_pb2.OUTCOME_UNAVAILABLE,
        split=split_of(prompt.messages, study.base.comparisons.held_out_fraction),
        dimension=prompt.dimension,
    )
    pair.id = content_id(pair)
    if failure := next((one for one in answered if isinstance(one, Failed)), None):
        pair.outcome = types_pb2.OUTCOME_INVALID
        kinds = types_pb2.FailureKind.DESCRIPTOR.values_by_name
        kind = kinds.get(f"FAILURE_KIND_{failure.kind.upper()}", kinds["FAILURE_KIND_UNSPECIFIED"])
        pair.judgements.add(outcome=pair.outcome, failure=failure.reason, failure_kind=kind.number)
    return pair


def _failure(pair: types_pb2.Comparison) -> Failed | None:
    return stored_failure(pair) if pair.outcome == types_pb2.OUTCOME_INVALID else None
