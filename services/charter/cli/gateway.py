"""`charter gateway`: the models of policy services, and the judge's, over OpenAI's HTTP API."""

import asyncio
import ipaddress
import logging
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from charter.cli.output import console, fail
from charter.cli.services import endpoint

# Seconds that answers under way have after SIGTERM, as those of a service have.
_DRAIN_SECONDS = 30

PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="[NAME=]ADDRESS",
        envvar="CHARTER_GATEWAY_POLICIES",
        help="A policy service or a judge, host:port (replicas with commas), and the name that clients give its model; "
        "repeatable. In the variable they are parted by spaces. Default: the policy of other commands, by its model's "
        "name, and their judge, as `judge`.",
    ),
]
KeyOption = Annotated[
    str,
    typer.Option(envvar="CHARTER_GATEWAY_API_KEY", help="Key that clients must send. Default: any or none will do."),
]
TlsOption = Annotated[
    Path | None,
    typer.Option(envvar="CHARTER_GATEWAY_TLS", help="Folder with tls.crt and tls.key: serve HTTPS by them."),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")]
MetricsPortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of Prometheus metrics.")]


def gateway(
    policy: PolicyOption = None,
    api_key: KeyOption = "",
    tls: TlsOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Serve the policy and the judge's model over OpenAI's HTTP API, for chat clients and evaluation harnesses.

    It runs until SIGTERM or Ctrl-C. Services may come and go: while one is away its clients get status 503.
    """
    # Here, not at the top: who asks for help waits for no web server.
    import prometheus_client

    from charter.rpc.logs import configure_logging

    named, unnamed = _addresses(policy or [endpoint("policy").main, f"judge={endpoint('judge').main}"])
    configure_logging("gateway")
    try:
        listening = socket.create_server((host, port))
        if metrics_port is not None:
            prometheus_client.start_http_server(metrics_port, addr=host)
    except OSError as error:
        fail(
            f"cannot listen on {host}: {error.strerror}. Stop what listens there, or use another --port, --metrics-port"
        )
    asyncio.run(_serve(named, unnamed, api_key, tls, listening))


async def _serve(
    named: dict[str, str], unnamed: list[str], api_key: str, tls: Path | None, listening: socket.socket
) -> None:
    import uvicorn

    from charter.gateway.app import build
    from charter.gateway.policies import Policies

    policies = Policies(named, unnamed)
    try:
        config = uvicorn.Config(
            build(policies, api_key),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            ssl_certfile=tls and tls / "tls.crt",
            ssl_keyfile=tls and tls / "tls.key",
        )
        config.load()
    except OSError as error:
        fail(f"cannot serve HTTPS: --tls names a folder with tls.crt and tls.key. {error}")
    address, bound = listening.getsockname()[:2]
    shown = "localhost" if address == "0.0.0.0" else address
    base_url = f"{'https' if tls else 'http'}://{shown}:{bound}/v1"
    logging.getLogger("charter.gateway").info("serving", extra={"base_url": base_url})
    console.print(f"base URL: {escape(base_url)}", soft_wrap=True)
    if not api_key and not ipaddress.ip_address(address).is_loopback:
        warning = "Whoever reaches this port may ask: set CHARTER_GATEWAY_API_KEY to require a key."
        console.print(warning, soft_wrap=True)
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        await policies.close()


def _addresses(given: list[str]) -> tuple[dict[str, str], list[str]]:
    """Addresses by the names of their models, and those without a name."""
    named: dict[str, str] = {}
    unnamed: list[str] = []
    for text in given:
        name, separator, address = text.rpartition("=")
        if not address or (separator and not name):
            fail(f"--policy takes ADDRESS or NAME=ADDRESS, got `{text}`")
        for one in address.split(","):
            host, _, port = one.rpartition(":")
            if not host or not port.isdigit():
                fail(f"--policy takes addresses of the form host:port, got `{one}`")
        if name in named:
            fail(f"two policies are named `{name}`: give each a name of its own, --policy NAME=ADDRESS")
        if separator:
            named[name] = address
        else:
            unnamed.append(address)
    return named, unnamed
