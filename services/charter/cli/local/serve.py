"""`charter serve`: one service in the foreground, until SIGTERM or Ctrl-C. The only file that builds services."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from charter.cli.database import DatabaseOption, default_database
from charter.cli.output import fail
from charter.cli.services import home, service_addresses, sharing_of
from charter.spec.chat_form import ChatForm
from charter.spec.yaml_values import Loader

if TYPE_CHECKING:
    from charter.rpc.lifecycle import Service
    from charter.trainer.launcher import Launcher

# Name of a preference model that was given none.
DEFAULT_MODEL = "default"

HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port of the service; 0 takes a free one.")]
ControlPortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port for weights, or for workers' reports.")]
MetricsPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of Prometheus metrics.")]
HealthPortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port of health alone, never with TLS, for probes.")
]
ModelOption = Annotated[str, typer.Option(help="Hub id or folder of the model.")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        # In a manifest an overlay can add a variable, but not an argument to the list of the base.
        envvar="CHARTER_ENGINE_SETTINGS",
        help="A setting of the engine, by its name there; repeatable. In the variable they are parted by spaces.",
    ),
]

ChatTemplateOption = Annotated[
    str,
    typer.Option(
        envvar="CHARTER_CHAT_TEMPLATE",
        help="Template for a model without one: chatml, a Jinja file, or the model to take it from, as in the spec.",
    ),
]
EosTokenOption = Annotated[
    str, typer.Option(envvar="CHARTER_EOS_TOKEN", help="Token that ends an answer, with --chat-template.")
]
MigrateOption = Annotated[
    bool,
    typer.Option(
        envvar="CHARTER_MIGRATE",
        help="Bring the tables to this version at the start, or wait until `charter database migrate` has.",
    ),
]


def policy(
    model: ModelOption,
    engine: Annotated[str, typer.Option(help="transformers, vllm or fake.")] = "transformers",
    setting: SettingOption = None,
    chat_template: ChatTemplateOption = "",
    eos_token: EosTokenOption = "",
    host: HostOption = "127.0.0.1",
    port: PortOption = 50051,
    control_port: ControlPortOption = 50061,
    metrics_port: MetricsPortOption = None,
    health_port: HealthPortOption = None,
) -> None:
    """Sample answers from the policy, and take its new weights."""

    def build() -> "Service":
        from charter.policy import server

        settings, chat_model = _settings(setting), _with_template(model, chat_template, eos_token)
        return server.build(server.PolicyConfig(chat_model, home() / "staging" / "policy", engine, settings))

    _run("policy", build, host, port, control_port, metrics_port, health_port)


def judge(
    model: ModelOption,
    constitution: Annotated[Path, typer.Option(help="YAML file of the constitution.")],
    engine: Annotated[str, typer.Option(help="transformers, vllm, openai or fake.")] = "transformers",
    method: Annotated[
        str, typer.Option(help="choice, verdict, contrast or mix. Default: contrast, choice for an endpoint.")
    ] = "",
    endpoint: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible endpoint (engine openai).")] = "",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file to apply.")] = None,
    setting: SettingOption = None,
    chat_template: ChatTemplateOption = "",
    eos_token: EosTokenOption = "",
    host: HostOption = "127.0.0.1",
    port: PortOption = 50052,
    control_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on which a worker that shares its GPU asks it to sleep.")
    ] = None,
    metrics_port: MetricsPortOption = None,
    health_port: HealthPortOption = None,
) -> None:
    """Compare, rate, criticise and revise answers by a constitution."""

    def build() -> "Service":
        from charter.judge import server

        if (engine == "openai") != bool(endpoint):
            raise ValueError(
                "engine openai needs --endpoint, the base URL of the endpoint, and no other engine takes it"
            )
        settings = _settings(setting) | ({"endpoint": endpoint} if endpoint else {})
        # An endpoint gives no log-likelihoods, which contrast reads.
        chosen = method or ("choice" if engine == "openai" else "contrast")
        chat_model = _with_template(model, chat_template, eos_token)
        return server.build(server.JudgeConfig(chat_model, constitution, engine, chosen, calibration, settings))

    _run("judge", build, host, port, control_port, metrics_port, health_port)


def preference(
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]MODEL",
            help="Hub id or folder of a language model that a run will send fitted weights for, or a preference_model "
            "folder. Repeatable: more preference_model folders, each with a name that Score can ask for.",
        ),
    ],
    chat_template: ChatTemplateOption = "",
    eos_token: EosTokenOption = "",
    database: DatabaseOption = "",
    migrate: MigrateOption = True,
    host: HostOption = "127.0.0.1",
    port: PortOption = 50053,
    control_port: ControlPortOption = 50063,
    metrics_port: MetricsPortOption = None,
    health_port: HealthPortOption = None,
) -> None:
    """Store comparisons, score answers with preference models, and take new weights of the first."""

    def build() -> "Service":
        from charter.preference import server

        models = _named(model)
        # The first is the one that a run sends weights for; the others carry their templates.
        first = next(iter(models))
        models[first] = _with_template(models[first], chat_template, eos_token)
        staging = home() / "staging" / "preference"
        return server.build(server.PreferenceConfig(models, database or default_database(), staging, migrate))

    _run("preference", build, host, port, control_port, metrics_port, health_port)


def trainer(
    database: DatabaseOption = "",
    migrate: MigrateOption = True,
    artifacts: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: runs in CHARTER_HOME.")] = None,
    control_address: Annotated[
        str, typer.Option(help="Where workers report, host:port. Default: the control port on this machine.")
    ] = "",
    launcher: Annotated[
        str, typer.Option(help="local: workers are processes here. kubernetes: they are Jobs of this pod's namespace.")
    ] = "local",
    gpu_sharing: Annotated[
        str,
        typer.Option(help="together, servers_sleep or take_turns: how services and workers share a GPU."),
    ] = "unspecified",
    host: HostOption = "127.0.0.1",
    port: PortOption = 50054,
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for workers' reports.")] = 50064,
    metrics_port: MetricsPortOption = None,
    health_port: HealthPortOption = None,
) -> None:
    """Own runs, start their workers and watch them."""

    def build() -> "Service":
        from charter.trainer import server

        return server.build(
            server.TrainerConfig(
                database or default_database(),
                artifacts or home() / "runs",
                control_address or f"127.0.0.1:{control_port}",
                _launcher(launcher),
                service_addresses(sharing_of(gpu_sharing)),
                migrate,
            )
        )

    _run("trainer", build, host, port, control_port, metrics_port, health_port)


def _run(
    name: str,
    build: Callable[[], "Service"],
    host: str,
    port: int,
    control_port: int | None,
    metrics_port: int | None,
    health_port: int | None,
) -> None:
    # Here, not at the top: who asks for help waits for no server.
    from charter.rpc.lifecycle import Listen, PortTakenError, serve
    from charter.rpc.logs import configure_logging
    from charter.rpc.tracing import configure_tracing
    from charter.storage.database import DatabaseError

    configure_logging(name)
    try:
        configure_tracing(name)
        asyncio.run(serve(build(), Listen(host, port, control_port, metrics_port, health_port)))
    except (PortTakenError, DatabaseError, OSError, ValueError, RuntimeError) as error:
        # The words below are for a person; where it happened is for the log.
        logging.getLogger("charter.cli").error("the service cannot serve", exc_info=error)
        fail(f"the {name} service cannot serve: {error!s}")


def _launcher(name: str) -> "Launcher":
    match name:
        case "local":
            from charter.trainer.local_launcher import LocalLauncher

            return LocalLauncher()
        case "kubernetes":
            from charter.trainer.kubernetes_launcher import KubernetesLauncher

            return KubernetesLauncher.in_cluster()
    raise ValueError(f"--launcher is local or kubernetes, got `{name}`")


def _with_template(model: str, chat_template: str, eos_token: str) -> str:
    if not chat_template:
        return model
    from charter.inference.base_model import as_chat_model

    return as_chat_model(model, ChatForm(chat_template, eos_token))


def _named(given: list[str]) -> dict[str, str]:
    """Models by name: of NAME=MODEL, or of MODEL alone, which is `default`."""
    models: dict[str, str] = {}
    for text in given:
        name, separator, model = text.partition("=")
        # A folder may have `=` in its name: ./lr=3 is no name with a model.
        if not separator or "/" in name:
            name, model = DEFAULT_MODEL, text
        if not name or not model:
            raise ValueError(f"--model takes MODEL or NAME=MODEL, got `{text}`")
        if name in models:
            raise ValueError(f"two models are named `{name}`: give each a name of its own, --model NAME=MODEL")
        models[name] = model
    return models


def _settings(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs, values read as YAML scalars."""
    settings = {}
    for pair in given or []:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"--setting takes NAME=VALUE, got `{pair}`")
        settings[name] = yaml.load(value, Loader=Loader)
    return settings
