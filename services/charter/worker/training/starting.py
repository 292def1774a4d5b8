"""The models that a spec starts from, as they are loaded: with the chat template that it gives to one without."""

from functools import cache

from charter.inference.base_model import as_chat_model
from charter.spec.chat_form import ChatForm
from charter.spec.facts import reads_untrained_policy
from charter.v1 import run_pb2


def policy_model(spec: run_pb2.RunSpec) -> str:
    """Hub id or folder of the policy. Raises as ``as_chat_model``."""
    return _chat_model(spec.policy.model, ChatForm(spec.policy.chat_template, spec.policy.eos_token))


@cache
def _chat_model(model: str, form: ChatForm) -> str:
    """Once in a process, however often a stage asks what it starts from: the hub is asked, and files are read."""
    return as_chat_model(model, form)


def preference_base(spec: run_pb2.RunSpec) -> str:
    """Hub id or folder of what the preference model is fitted from: the policy's, or a model with its own template."""
    return policy_model(spec) if reads_untrained_policy(spec) else spec.preference_model.model
