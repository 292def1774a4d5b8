"""Rules of a run spec about the policy's chat template, by the files that are here; no model is loaded."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from charter.spec.chat_form import CHATML, CHATML_TOKENS, TEMPLATE_ENDINGS
from charter.spec.facts import needs_reinforcement, reads_turns, reads_untrained_policy
from charter.spec.models import folder_of, has_chat_template, knows_token
from charter.spec.problems import Problem
from charter.spec.template_files import template_problem
from charter.v1 import run_pb2

_FIELD = "policy.chat_template"


def chat_template(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """The template is there and can be used; template and EOS belong together."""
    template, eos = spec.policy.chat_template, spec.policy.eos_token
    if not template:
        if eos:
            yield Problem("policy.eos_token", f"belongs to {_FIELD}, which is not set: set both or none")
        yield from _own_template(spec)
        return
    is_file = os.path.isfile(template)
    if not eos and (is_file or template.lower().endswith(TEMPLATE_ENDINGS)):
        yield Problem("policy.eos_token", "is required with a template file: the token that ends an answer", (_FIELD,))
    wrong = template_problem(Path(template)) if is_file else _wrong_name(template)
    if wrong:
        yield Problem(_FIELD, wrong)
    elif eos and not _knows(spec, template, eos):
        text = f"is {eos}, and neither {_FIELD} nor policy.model has such a token: it would be a new one, never learned"
        yield Problem("policy.eos_token", text, (_FIELD, "policy.model"))


def untrained_tokens(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Adapters train no embeddings: not of tokens that the template adds."""
    form = spec.policy
    # Of a model's template only the model that is made from it tells the tokens.
    needed = CHATML_TOKENS if form.chat_template == CHATML else (form.eos_token,) * os.path.isfile(form.chat_template)
    new = [token for token in needed if token and knows_token(form.model, token) is False]
    # The first stage that reads turns has to learn them.
    stages: dict[str, run_pb2.SupervisedSpec | run_pb2.DpoSpec | run_pb2.KtoSpec | run_pb2.PpoSpec]
    stages = {"supervised": spec.supervised, "revision.learning": spec.revision.learning}
    stages |= {"dpo": spec.dpo, "kto": spec.kto, "ppo": spec.ppo}
    there = {"supervised": spec.HasField("supervised"), "revision.learning": spec.HasField("revision")}
    there |= {"dpo": spec.HasField("dpo"), "kto": spec.HasField("kto"), "ppo": True}
    first = next(name for name in stages if there[name])
    adapted = [first] if stages[first].HasField("lora_rank") and (first != "ppo" or needs_reinforcement(spec)) else []
    if reads_untrained_policy(spec) and spec.preference_model.HasField("lora_rank"):
        adapted.append("preference_model")
    for name in adapted if new else ():
        yield Problem(
            f"{name}.lora_rank",
            f"trains no embeddings, and {_FIELD} adds tokens that policy.model has never seen: {', '.join(new)}. "
            "Leave it out to train every weight, or take a template of tokens that the model has",
            (_FIELD, "policy.model"),
        )


def _own_template(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Texts alone need none."""
    if reads_turns(spec) and spec.policy.engine != "fake" and _asked(spec.policy.model) is False:
        text = "is needed: the tokenizer of policy.model has none of its own. Name one, for example chatml"
        yield Problem(_FIELD, text, ("policy.model",))


def _wrong_name(template: str) -> str:
    """Why what is no file is no template, or nothing."""
    if template == CHATML:
        return ""
    if get_close_matches(template.lower().replace("-", "").replace("_", ""), [CHATML], n=1, cutoff=0.75):
        return f"is {template}: did you mean {CHATML}?"
    if folder_of(template) is None:
        if "/" in template or template.lower().endswith(TEMPLATE_ENDINGS):
            # A folder or file that is not here, which who resolves paths says, or a model that was not fetched.
            return ""
        return f"is {template}, which is neither {CHATML}, nor a file, nor a model that is here (of the hub: ORG/NAME)"
    if _asked(template) is False:
        return f"takes the template of {template}, whose tokenizer has none"
    return ""


def _asked(model: str) -> bool | None:
    try:
        return has_chat_template(model)
    except ValueError:
        # Whoever loads the tokenizer says what is wrong in its files.
        return None


def _knows(spec: run_pb2.RunSpec, template: str, eos: str) -> bool:
    """Whether the token is in the template, or known to the policy; True where that cannot be told."""
    if template == CHATML and eos in CHATML_TOKENS:
        return True
    if os.path.isfile(template):
        return eos in Path(template).read_text(encoding="utf-8") or knows_token(spec.policy.model, eos) is not False
    known = [knows_token(model, eos) for model in {spec.policy.model, template} - {CHATML}]
    return any(one is not False for one in known)
