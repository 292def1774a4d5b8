"""What answered and what judged, as it is kept: another under the same name must not go on with what one has begun."""

from typing import Any

from charter.evaluation.compare.asked import AskedFolder
from charter.evaluation.compare.trained import training_of
from charter.spec.models import weights_digest
from charter.v1 import evaluation_pb2, judge_pb2, types_pb2
from charter.worker.errors import RunError

# Of what is kept of a model or judge: other words for them make no other answers.
_NOT_BOUND = ("trained", "principles")


def about_model(model: evaluation_pb2.EvaluatedModel, served: types_pb2.ModelInfo) -> dict[str, Any]:
    """What is kept of a model that answers."""
    # A service that was sent the weights is still called by what it was started with.
    named = model.model or served.model
    return {
        "model": named,
        "engine": served.engine,
        "parameters": served.parameters,
        "weight_version": served.weight_version,
        "weight_digest": served.weight_digest,
        # Of the files: a service knows the digest only of weights that were sent to it.
        "files_digest": "" if model.address or model.engine in ("openai", "fake") else weights_digest(named),
        "chat_form": served.chat_form,
        "trained": training_of(model),
    }


def about_judge(
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
        # To show; the digest above binds them.
        "principles": {principle.id: principle.compare for principle in constitution.principles},
        "files_digest": "" if judge.address or judge.engine in ("openai", "fake") else weights_digest(info.model.model),
    }


def same_as_before(folder: AskedFolder, kind: str, name: str, about: dict[str, Any], *, bound: bool) -> None:
    """Keep what serves; raises ``RunError`` when earlier answers or judgements, which ``bound`` says are there, are
    another's.
    """
    before = folder.read_served()[kind].get(name)
    if before is None or not bound:
        folder.note_served(kind, name, about)
        return
    changed = [field for field in about if field not in _NOT_BOUND and before.get(field) != about[field]]
    if changed:
        now = "; ".join(f"{field} was {before.get(field)!r} and is {about[field]!r}" for field in changed)
        raise RunError(
            f"{kind[:-1]} `{name}` is not what it was when {folder.path} was begun: {now}. Bring it back, or give it "
            "another name in the spec"
        )
