"""`rfedge serve`: a bundle behind a websocket, for robots and simulators that speak openpi's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder

if TYPE_CHECKING:
    from rfedge.runtimes.server.app import PolicyServer

__all__ = ["serve"]


def serve(
    bundle: Annotated[
        Path, typer.Argument(callback=bundle_folder, help="Folder written by `rfedge export`, or a shipped policy's name.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 lets the system choose.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; else $RFEDGE_SERVER_TOKEN.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate chain: serve wss and https.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM key of the certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a token.")] = False,
    resize: Annotated[
        bool, typer.Option("--resize", help="Bring images of other sizes to the policy's, by its own geometry.")
    ] = False,
    deadline_ms: Annotated[float, typer.Option(help="A request that waits longer gets an error, not an old action.")] = 1000,
    max_connections: Annotated[int, typer.Option(help="Websockets open at a time.")] = 128,
    max_message_bytes: Annotated[int, typer.Option(help="Size of one message from a client.")] = 1 << 21,
    max_instruction_characters: Annotated[int, typer.Option(help="Length of an instruction.")] = 512,
    idle_timeout_s: Annotated[
        float | None, typer.Option(help="Disconnect a client that asks nothing for so long; by default none that lives.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which clients may ask for a server that listens on loopback, such as a proxy's; repeatable."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the policy; 0 is all physical cores.")] = 0,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, or where it is installed openvino, or tensorrt after `rfedge build`.")
    ] = "onnxruntime",
    provider: Annotated[str, typer.Option(help="Of onnxruntime: cpu, cuda, tensorrt or openvino.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout once clients can connect, the rest on stderr.")
    ] = False,
) -> None:
    import logging

    from rich.console import Console

    from rfedge.runtimes import EdgePolicy, RuntimeSettings
    from rfedge.runtimes.backends.ort_providers import parse_provider
    from rfedge.runtimes.server import security
    from rfedge.runtimes.server.app import PolicyServer
    from rfedge.runtimes.server.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        deadline_ms=deadline_ms,
        max_connections=max_connections,
        max_message_bytes=max_message_bytes,
        max_instruction_characters=max_instruction_characters,
        idle_timeout_s=idle_timeout_s,
        resize=resize,
        allowed_hosts=tuple(name.lower() for name in allow_host or ()),
    )
    runtime = RuntimeSettings(threads=threads, providers=parse_provider(provider))
    token = security.read_token(token_file)
    security.check_exposure(host, token, insecure=insecure)
    tls = security.tls_context(certificate, key)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    console = Console(stderr=True)
    if token is not None and tls is None and not security.is_loopback(host):
        console.print("warning: the token crosses the network in the clear; give --certificate and --key", highlight=False)
    with console.status(f"loading {bundle}"):
        policy = EdgePolicy.load(bundle, backend=backend, settings=runtime)
    if missed := policy.parts.forced_past:
        text = f"warning: {bundle} was exported with --force; its proof missed {'; '.join(missed)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    with policy:
        _serve(PolicyServer(policy, settings, token=token, tls=tls), as_json=as_json)


def _serve(server: PolicyServer, *, as_json: bool) -> None:
    import asyncio
    import json
    import signal

    from rich.console import Console

    console = Console(stderr=True)

    def announce(url: str) -> None:
        metadata = server.metadata
        console.print(
            f"{metadata['policy']} {metadata['precision']} on {url}, health on /healthz, metrics on /metrics",
            highlight=False,
            soft_wrap=True,
        )
        if as_json:
            typer.echo(json.dumps({"url": url} | metadata))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it outlives its terminal
            numbers.append(signal.SIGHUP)

        def stop(number: signal.Signals) -> None:
            for each in numbers:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once, whatever hangs
            console.print(f"{number.name}: answering what is under way", highlight=False)
            server.stop()

        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        await server.run(announce)

    asyncio.run(run())
