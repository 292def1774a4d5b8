"""Whether a service that is up is the one that a spec asks for; the record of a run then says what served it."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from charter.spec.chat_form import ChatForm
from charter.spec.load import spec_from_json
from charter.spec.paths import same_model
from charter.v1 import judge_pb2, run_pb2, types_pb2

# A spec that says one of these takes the engine that is there.
_ANY_ENGINE = ("", "auto", "external")
_WHAT_TO_DO = "start the services with this spec (`charter up`), or change the spec"


def policy_problems(spec: run_pb2.RunSpec, address: str, served: types_pb2.ModelInfo) -> Iterator[str]:
    """Why the policy at ``address`` is not the spec's."""
    yield from _model("policy", address, served, spec.policy.model, spec.policy.engine)
    form = ChatForm(spec.policy.chat_template, spec.policy.eos_token)
    # A file of another machine is compared there, by the worker.
    elsewhere = form.template.startswith("/") and not Path(form.template).exists() and bool(served.chat_form)
    if not elsewhere and served.chat_form != (form.digest if form.template else ""):
        asked = f"policy.chat_template {form.template}" if form.template else "no policy.chat_template"
        has = "another chat template" if served.chat_form else "the model's own chat template"
        yield f"the policy service at {address} serves {has}, the spec says {asked}: {_WHAT_TO_DO}"


def preference_problems(spec: run_pb2.RunSpec, address: str, served: types_pb2.ModelInfo) -> Iterator[str]:
    """Why the preference model at ``address`` is not the spec's, whose defaults are filled in."""
    yield from _model("preference", address, served, spec.preference_model.model, "", "preference_model")


def judge_problems(
    spec: run_pb2.RunSpec, address: str, served: judge_pb2.JudgeServiceGetModelInfoResponse
) -> Iterator[str]:
    """Why the judge at ``address`` is not the spec's. Raises ``OSError`` when the calibration file cannot be read."""
    yield from _model("judge", address, served.model, spec.judge.model, spec.judge.engine)
    if spec.judge.calibration:
        wanted = sha256(Path(spec.judge.calibration).read_bytes()).hexdigest()
        if wanted != served.calibration.digest:
            applies = "another calibration than" if served.calibration.digest else "no calibration, and not"
            yield (
                f"the judge service at {address} applies {applies} the spec's judge.calibration, "
                f"{spec.judge.calibration}: {_WHAT_TO_DO}"
            )


def _made_from(served: str, model: str) -> bool:
    """Whether a model is the policy of a run that began with the one that is served, or with another such policy."""
    spec = Path(model).parent / "spec.json"
    if Path(model).name != "policy" or not spec.is_file():
        return False
    before = spec_from_json(spec.read_text(encoding="utf-8")).policy.model
    return same_model(served, before) or _made_from(served, before)


def _model(
    service: str, address: str, served: types_pb2.ModelInfo, model: str, engine: str, section: str = ""
) -> Iterator[str]:
    section = section or service
    # Of a policy the weights are sent, whatever it serves.
    if not same_model(served.model, model) and not (service == "policy" and _made_from(served.model, model)):
        does = "judges with" if service == "judge" else "serves"
        yield (
            f"the {service} service at {address} {does} {served.model}, the spec says {model} ({section}.model): "
            f"{_WHAT_TO_DO}"
        )
    if engine not in _ANY_ENGINE and served.engine != engine:
        yield (
            f"the {service} service at {address} runs on engine {served.engine or '(it names none)'}, the spec says "
            f"{engine} ({section}.engine): {_WHAT_TO_DO}"
        )
