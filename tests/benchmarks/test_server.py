"""`rfedge bench server` in small, and that its gates see what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.latency import server as library
from rfedge.benchmarks.latency.server import ServerPlan, ServerReport, assert_p99_ms, assert_sound
from rfedge.cli.bench.server import server
from rfedge.errors import ConfigError, ContractError, GateError
from rfedge.runtimes.rollout.plan import RolloutPlan, ServerAddress
from tests.runtimes.handmade_bundle import INSTRUCTIONS, write_handmade_bundle

app = typer.Typer()
app.command()(server)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_handmade_bundle(path)
    return path


@pytest.fixture(scope="module")
def report(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerReport:
    """The real thing over the command line: three server processes, real sockets, real signals."""
    output = tmp_path_factory.mktemp("report") / "r.json"
    words = [flag for instruction in INSTRUCTIONS for flag in ("--instruction", instruction)]
    numbers = ["--clients", "12", "--streaming", "4", "--seconds", "1", "--malformed", str(3 * len(library.KINDS))]
    # A dead server is an error at once, and a live one has the time that a process of a busy machine needs for an answer.
    numbers += ["--deadline-ms", "5000"]
    app(args=["--bundle", str(bundle), *words, *numbers, "--output", str(output)], standalone_mode=False)
    return ServerReport.model_validate_json(output.read_text())


def test_every_scene_is_measured(report: ServerReport) -> None:
    assert report.streaming.num_connected == 12
    assert report.streaming.num_mixed == report.streaming.num_late == 0
    assert report.streaming.num_answered >= 4
    assert report.streaming.round_trip_ms.p50 > report.streaming.infer_ms.p50 > 0
    assert report.malformed.per_kind == dict.fromkeys(library.KINDS, 3)
    assert report.malformed.num_good_served == report.malformed.num_good == 2
    assert report.loss.num_held > 0
    assert report.loss.num_reconnects == 1
    assert report.loss.back_after_s is not None
    assert report.exit_status == 0
    assert_sound(report)


def changed(report: ServerReport, part: str, **changes: object) -> ServerReport:
    document = json.loads(report.model_dump_json())
    document[part] |= changes
    return ServerReport.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("streaming", {"num_mixed": 1}, "answers that differ from a solo run: got 1, expected 0"),
        ("streaming", {"num_late": 2}, "late answers: got 2, expected 0"),
        ("malformed", {"num_good_served": 1}, "good clients served between malformed messages: got 1, expected 2"),
        ("malformed", {"rss_bytes": [1, 2 + (8 << 20)]}, "growth of memory: got 8388609 bytes, expected at most 8388608"),
        ("malformed", {"num_files": [10, 11]}, "open files: got 11, expected 10"),
        ("malformed", {"num_threads": [4, 5]}, "threads: got 5, expected 4"),
        ("malformed", {"log_lines": ["ERROR"]}, "lines in the log: got 1, expected 0"),
        ("loss", {"slowest_error_ms": 5051.0}, "time to an error without a server: got 5051 ms"),
        ("loss", {"held_still": False}, "zero motion without a server: got False"),
        ("loss", {"num_reconnects": 0}, "reconnections: got 0, expected 1"),
        ("loss", {"num_wrong": 3}, "wrong actions after the reconnection: got 3, expected 0"),
        ("loss", {"ended": "max-steps"}, "end of a run whose server stays away: got max-steps, expected misses"),
    ],
)
def test_gates_see_what_they_are_for(report: ServerReport, part: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(GateError) as error:
        assert_sound(changed(report, part, **changes))
    assert words in str(error.value)


def test_a_limit_on_the_round_trip(report: ServerReport) -> None:
    assert_p99_ms(report, 60_000)
    with pytest.raises(GateError, match="p99 of round trips: got .* ms, expected at most 0.001 ms"):
        assert_p99_ms(report, 0.001)


def test_plans_that_measure_nothing_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"streaming: got 9, expected at most 8 \(clients\)"):
        ServerPlan(clients=8, streaming=9)
    with pytest.raises(ConfigError, match="malformed: got 0, expected at least 1"):
        ServerPlan(malformed=0)
    with pytest.raises(ConfigError, match="seconds and deadline-ms"):
        ServerPlan(seconds=0)
    with pytest.raises(ContractError, match="instruction"):
        library.run_server(ServerPlan(bundle=bundle, instructions=("push " * 200,)))


def test_a_run_has_one_policy() -> None:
    with pytest.raises(ConfigError, match="policy: got neither bundle nor server"):
        RolloutPlan()
    assert "secret" not in repr(RolloutPlan(server=ServerAddress("ws://x", token="a secret token, long")))
