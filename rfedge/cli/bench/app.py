"""`rfedge bench`: measurements, each a table for people and one JSON document for machines."""

from __future__ import annotations

import typer

from rfedge.cli.groups import lazy_group

_COMMANDS = {
    "latency": ("latency:latency", "Time bundles and the PyTorch original against each other, interleaved in one process."),
    "chains": ("chains:chains", "Show CALVIN's chains of five tasks and their SHA-256."),
    "env": ("env:env", "Time an environment: physics alone, each camera and both, a whole step and a reset."),
    "episodes": (
        "episodes:episodes",
        "Compare each bundle's actions with those of held-out episodes, frame by frame: action error and gripper agreement.",
    ),
    "looks": ("looks:looks", "Compare PlayTable's pictures with those of an installed calvin_env, in equal states."),
    "server": (
        "server:server",
        "Measure a policy server under load: round trips, and whether each client gets what it would get alone.",
    ),
    "success": (
        "success:success",
        "Run bundles on the same chains and tasks, and say how much of the first one's success the others keep.",
    ),
    "report": (
        "report:report",
        "Join records of success, sweep, latency and the rest into one page, with what is missing named.",
    ),
}
bench_app = typer.Typer(name="bench", cls=lazy_group("rfedge.cli.bench", _COMMANDS), no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Measure latency and success."""
