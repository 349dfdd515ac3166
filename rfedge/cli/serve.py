"""`rfedge serve`: a bundle behind a websocket, for robots and simulators that speak openpi's protocol."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rfedge.cli.options import AsJson, bundle_folder, plan_of, with_options
from rfedge.records.plan import Option, Uses
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import AUTO, BACKEND_HELP, BACKENDS
from rfedge.runtimes.server.settings import ServerSettings

if TYPE_CHECKING:
    from rfedge.runtimes.server.app import PolicyServer

_ACCESS: Final = "Address and access"


@dataclass(frozen=True)
class _Plan:
    settings: Annotated[RuntimeSettings, Uses("threads", "providers", panel="Policy")] = field(
        default_factory=RuntimeSettings
    )
    backend: Annotated[str, Option(BACKEND_HELP, choices=BACKENDS)] = AUTO


@with_options(ServerSettings, _Plan)
def serve(
    bundle: Annotated[
        Path, typer.Argument(callback=bundle_folder, help="Folder written by `rfedge export`, or a shipped policy's name.")
    ],
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must send; else $RFEDGE_SERVER_TOKEN.", rich_help_panel=_ACCESS),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate chain: serve wss and https.", rich_help_panel=_ACCESS)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM key of the certificate.", rich_help_panel=_ACCESS)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a token.", rich_help_panel=_ACCESS)
    ] = False,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    import logging

    from rich.console import Console

    from rfedge.runtimes import EdgePolicy
    from rfedge.runtimes.server import security
    from rfedge.runtimes.server.app import PolicyServer

    settings, plan = plan_of(ServerSettings, given), plan_of(_Plan, given)
    token = security.read_token(token_file)
    security.check_exposure(settings.host, token, insecure=insecure)
    tls = security.tls_context(certificate, key)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if token is not None and tls is None and not security.is_loopback(settings.host):
        print("warning: the token crosses the network in the clear; give --certificate and --key", file=sys.stderr)
    with Console(stderr=True).status(f"loading {bundle}"):
        policy = EdgePolicy.load(bundle, backend=plan.backend, settings=plan.settings)
    if policy.parts.tuned:
        print(f"tuned: {policy.parts.tuned}", file=sys.stderr)
    if missed := policy.parts.forced_past:
        print(f"warning: {bundle} was exported with --force; its proof missed {'; '.join(missed)}", file=sys.stderr)
    with policy:
        _serve(PolicyServer(policy, settings, token=token, tls=tls))


def _serve(server: PolicyServer) -> None:
    import asyncio
    import signal

    from rfedge.cli.show.tables import print_json

    def announce(url: str) -> None:
        metadata = server.metadata
        served = f"{metadata['policy']} {metadata['precision']} on {url}"
        print(f"{served}, health on /healthz, metrics on /metrics", file=sys.stderr)
        print_json({"url": url} | metadata)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it outlives its terminal
            numbers.append(signal.SIGHUP)

        def stop(number: signal.Signals) -> None:
            for each in numbers:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once, whatever hangs
            print(f"{number.name}: answering what is under way", file=sys.stderr)
            server.stop()

        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        await server.run(announce)

    asyncio.run(run())
