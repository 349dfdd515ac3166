"""`rfedge bench server` in small, and that its gates see what they are for."""

from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.latency.server import ServerPlan, ServerReport, assert_p99_ms, assert_sound, run_server
from rfedge.cli.bench.server import server
from rfedge.errors import ConfigError, ContractError, GateError
from rfedge.runtimes.rollout.plan import RolloutPlan, ServerAddress
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS

app = typer.Typer()
app.command()(server)


@pytest.fixture(scope="module")
def report(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerReport:
    """The real thing over the command line: a server process and real sockets."""
    output = tmp_path_factory.mktemp("report") / "r.json"
    words = [flag for instruction in INSTRUCTIONS for flag in ("--instruction", instruction)]
    app(args=[str(bundle), *words, "--clients", "4", "--seconds", "1", "--output", str(output)], standalone_mode=False)
    return ServerReport.model_validate_json(output.read_text())


def test_every_client_gets_what_it_would_get_alone(report: ServerReport) -> None:
    assert (report.num_clients, report.num_mixed, report.num_late, report.exit_status) == (4, 0, 0, 0)
    assert report.num_answered >= sum(report.requests_per_client) >= 2
    assert report.round_trip_ms.p50 > report.infer_ms.p50 > 0
    assert_sound(report)


@pytest.mark.parametrize(
    ("field", "got", "subject"),
    [
        ("num_mixed", 1, "answers that differ from a solo run"),
        ("num_late", 2, "late answers"),
        ("exit_status", 1, "exit status after SIGTERM"),
    ],
)
def test_gates_see_what_they_are_for(report: ServerReport, field: str, got: int, subject: str) -> None:
    with raises(GateError, subject, got=got, expected=0):
        assert_sound(report.model_copy(update={field: got}))


def test_a_limit_on_the_round_trip(report: ServerReport) -> None:
    assert_p99_ms(report, 60_000)
    with raises(GateError, "p99 of round trips", got="... ms", expected="at most 0.001 ms"):
        assert_p99_ms(report, 0.001)


def test_plans_that_measure_nothing_are_refused(bundle: Path) -> None:
    with raises(ConfigError, "clients", got=0, expected="at least 1"):
        ServerPlan(bundle, clients=0)
    with raises(ConfigError, "seconds", got=0, expected="above 0"):
        ServerPlan(bundle, seconds=0)
    with raises(ContractError, "instruction"):
        run_server(ServerPlan(bundle, instructions=("push " * 200,)))


def test_a_run_has_one_policy() -> None:
    with raises(ConfigError, "policy", got="neither bundle nor server"):
        RolloutPlan()
    assert "secret" not in repr(RolloutPlan(server=ServerAddress("ws://x", token="a secret token, long")))
