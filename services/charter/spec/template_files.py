"""What is wrong with a chat template that a spec takes from a file: seen by rendering it, without a model."""

from pathlib import Path
from typing import Any

_MARKS = ("Qz0zQ", "Qz1zQ", "Qz2zQ")
_ROLES = ("user", "assistant", "user")


def template_problem(file: Path) -> str:
    """Why no conversation can be read by it; empty where one can."""
    # Here, not at the top: a spec seldom names a file.
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What marks an assistant's text for training; transformers knows it, jinja2 does not."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    # As transformers has it (5.19, utils/chat_template_utils.py).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    try:
        template = environment.from_string(file.read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read: {error.strerror}: {file}"
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text: {file}: {error.reason}"
    except jinja2.TemplateSyntaxError as error:
        return f"is no Jinja template: {file}, line {error.lineno}: {error.message}"
    messages = [{"role": role, "content": mark} for role, mark in zip(_ROLES, _MARKS, strict=True)]
    refusals = []
    for count in (1, len(messages)):
        try:
            rendered = template.render(
                messages=messages[:count], add_generation_prompt=True, bos_token="", eos_token=""
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            refusals.append(f"{type(error).__name__}: {error}")
            continue
        if missing := [role for role, mark in zip(_ROLES[:count], _MARKS, strict=False) if mark not in rendered]:
            return f"leaves out what the {missing[0]} says: {file}"
    # One that takes only some conversations is of use for those.
    return f"refuses every conversation: {file}: {refusals[0]}" if len(refusals) == 2 else ""
