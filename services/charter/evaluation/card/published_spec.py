"""The spec of a run as it may be published: enough to make it again, and nothing of a machine or a person."""

from charter.evaluation.report.model_names import model_name
from charter.runs.folder import RunFolder
from charter.spec.data_sources import change_data_sources
from charter.spec.facts import needs_reinforcement, used_parts
from charter.v1 import run_pb2

# Beside the card.
SPEC_FILE = "spec.yaml"
CONSTITUTION_FILE = "constitution.yaml"


def published_spec(run: RunFolder, spec: run_pb2.RunSpec) -> tuple[run_pb2.RunSpec, list[str]]:
    """The parts of a filled spec that its run used, files and folders by their names alone and no address.

    Also the fields that whoever runs it again must fill in first.
    """
    published = used_parts(spec)
    change_data_sources(published, lambda _field, source: source.without_folder())
    if published.HasField("revision"):
        # The rules of a spec allow none.
        published.revision.learning.ClearField("data")
    published.ClearField("services")
    published.ClearField("sinks")
    policy = published.policy
    policy.model = model_name(policy.model)
    policy.chat_template = model_name(policy.chat_template)
    fill_in = [f"{name}.stored" for name in ("dpo", "kto") if getattr(published, name).HasField("stored")]
    if not needs_reinforcement(spec):
        return published, fill_in
    policy.engine = run.engine("policy")
    judge = published.judge
    judge.model, judge.engine = model_name(judge.model), run.engine("judge")
    if run.constitution is not None or judge.constitution:
        judge.constitution = CONSTITUTION_FILE
    judge.calibration = model_name(judge.calibration)
    if judge.endpoint:
        judge.ClearField("endpoint")
        fill_in.append("judge.endpoint")
    if published.HasField("preference_model"):
        published.preference_model.model = model_name(published.preference_model.model)
    if published.reward.service:
        published.reward.ClearField("service")
        published.reward.service_model = model_name(published.reward.service_model)
        fill_in.append("reward.service")
    for kind in ("models", "judges"):
        for index, one in enumerate(getattr(published.evaluation.compare, kind)):
            one.ClearField("address")
            fill_in.append(f"evaluation.compare.{kind}[{index}].address")
    return published, fill_in
