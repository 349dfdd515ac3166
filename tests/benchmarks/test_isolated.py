"""Every variant in a process of its own, on `tiny`: rows, baselines of other tools, and the gates on the figures."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import typer
from onnx import helper

from rfedge.benchmarks.latency.isolated import (
    BASELINES,
    DYNAMIC,
    OPTIMUM,
    PYTORCH,
    QUANTIZED,
    IsolatedLimit,
    IsolatedPlan,
    IsolatedReport,
    IsolatedRow,
    _ask,
    _EndedError,
    assert_isolated,
    check_assertable,
    missing_memory,
    missing_package,
    quantize,
    run_isolated,
)
from rfedge.benchmarks.latency.isolated_process import ProcessJob
from rfedge.benchmarks.latency.run import LatencyPlan
from rfedge.cli.bench.app import bench_app
from rfedge.config import preset
from rfedge.errors import ConfigError, GateError
from rfedge.export.options import ExportOptions
from rfedge.export.passes.graph_files import write_graph
from rfedge.export.pipeline import export_checkpoint
from rfedge.jobs.processes import worker_pool
from rfedge.records.machine import provenance
from rfedge.records.statistics import Ratio
from rfedge.runtimes import RuntimeSettings
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.export.float_graphs import draw, graph_of, relative_rms, run

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def report(speedup: float, peak_gib: float) -> IsolatedReport:
    def row(name: str, value: float = 1.0) -> IsolatedRow:
        ratio = Ratio(value=value, low=value, high=value)
        return IsolatedRow(name=name, speedup=ratio, peak_bytes=int(peak_gib * 2**30))

    return IsolatedReport(
        schema_version=1,
        **provenance(),
        size="tiny",
        num_tokens=5,
        threads=1,
        rounds=1,
        calls=1,
        rows=(row("rfedge int8"), row("rfedge int8 (again)"), row(PYTORCH, 1 / speedup)),
        noise_floor=Ratio(value=1.0, low=1.0, high=1.0),
        limit=IsolatedLimit(
            int8_ops=1.0, fp32_flops=1.0, bandwidth_bytes=1.0, int8_ms=1.0, fp32_ms=1.0, int8_share=None, fp32_share=None
        ),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "checkpoint", preset("tiny"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    export_checkpoint(checkpoint, checkpoint.parent / "fp32", ExportOptions(num_parity_steps=2))
    return checkpoint.parent / "fp32"


def test_the_gates_hold_speed_and_memory() -> None:
    assert_isolated(report(4.6, 2.9), speedup=4.5, peak_gib=3.0)
    with raises(GateError, "rfedge int8 of tiny", got="4.40x of 4.5x; peak 3.10 GiB of 3 GiB"):
        assert_isolated(report(4.4, 3.1), speedup=4.5, peak_gib=3.0)
    measured = report(4.6, 2.9)
    failed = IsolatedRow(name=PYTORCH, failed="out of memory")
    without = measured.model_copy(update={"rows": (*measured.rows[:2], failed)})
    with raises(GateError, "rfedge int8 of tiny", got="no time of PyTorch (out of memory)"):
        assert_isolated(without, speedup=4.5, peak_gib=3.0)
    with raises(ConfigError, "--assert-speedup", got="no checkpoint"):
        check_assertable(LatencyPlan((Path("bundle"),)))


def test_a_plan_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    latency = LatencyPlan((tmp_path,))
    with raises(ConfigError, "rounds", got=0, expected="at least 1"):
        IsolatedPlan(latency, rounds=0)
    with raises(ConfigError, "--baseline pytorch-bf16", got="no checkpoint"):
        IsolatedPlan(latency, ("pytorch-bf16",))


def test_a_tool_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "backbone.onnx").write_bytes(b"")
    assert missing_memory(tmp_path / "backbone.onnx") is None
    with (tmp_path / "backbone.onnx.data").open("wb") as file:
        file.truncate(10**12)  # a file of nothing takes no room
    assert str(missing_memory(tmp_path / "backbone.onnx")).startswith("needs 4000.0 GB to quantize 1000.0 GB, ")
    assert str(quantize(DYNAMIC, tmp_path / "backbone.onnx", tmp_path / "out")).startswith("needs 4000.0 GB")
    if missing_package(OPTIMUM) is not None:
        assert missing_package(OPTIMUM) == "optimum-onnx is not installed (pip install 'rfedge[baselines]')"
        assert quantize(OPTIMUM, tmp_path / "backbone.onnx", tmp_path / "out") == missing_package(OPTIMUM)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [DYNAMIC, OPTIMUM])
def test_a_tool_quantizes_and_a_failure_is_a_reason(tmp_path: Path, name: str) -> None:
    if (reason := missing_package(name)) is not None:
        pytest.skip(reason)
    weight, x = draw(np.random.default_rng(0), 64, 8), draw(np.random.default_rng(1), 2, 64)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (2, 64)}, ["y"])
    write_graph(model, tmp_path / "backbone.onnx")
    assert quantize(name, tmp_path / "backbone.onnx", tmp_path / "out") is None
    result = run(tmp_path / "out" / QUANTIZED, {"x": x})[0]
    assert 0 < relative_rms(result, x @ weight) < 0.03
    (tmp_path / "backbone.onnx").write_text("no protobuf")
    assert "backbone.onnx" in str(quantize(name, tmp_path / "backbone.onnx", tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_process_that_is_killed_is_a_reason() -> None:
    job = ProcessJob(Path("bundle"), "onnxruntime", "open", threads=1, seed=0)
    with pytest.raises(_EndedError, match="its process was killed") as ended, worker_pool(1) as process:
        _ask(process, _die, job)
    assert ended.value.job is job


def _die(_: ProcessJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_every_row_runs(checkpoint: Path, bundle: Path) -> None:
    latency = LatencyPlan((bundle,), checkpoint, instruction="open", settings=RuntimeSettings(threads=1))
    measured = run_isolated(IsolatedPlan(latency, tuple(BASELINES), rounds=2, calls=3))
    by_name = {row.name: row for row in measured.rows}
    failed = {name: row.failed for name, row in by_name.items() if row.failed is not None}
    absent = {"rfedge fp32 on OpenVINO": "openvino is not installed", BASELINES[OPTIMUM]: "optimum-onnx is not installed"}
    assert set(failed) <= set(absent), failed
    assert all(absent[name] in str(reason) for name, reason in failed.items())
    assert measured.rows[0].speedup.value == 1.0
    assert by_name["rfedge fp32 (again)"].speedup == measured.noise_floor
    for name, row in by_name.items():
        if name not in failed:
            assert row.call_ms.n == (6 if name != "rfedge fp32" else 6 * (len(by_name) - len(failed) - 1))
            assert row.peak_bytes is not None
    assert measured.limit.fp32_share is not None


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(bundle), "--isolate", "--baseline", DYNAMIC, "--rounds", "1", "--calls", "2", "--threads", "1"]
    arguments += ["--instruction", "open"]
    app(args=["bench", "latency", *arguments, "--output", str(tmp_path / "i.json"), "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    names = [row["name"] for row in json.loads(out)["rows"]]
    assert names == ["rfedge fp32", "rfedge fp32 (again)", BASELINES[DYNAMIC]]
    assert [row["call_ms"]["n"] for row in json.loads(out)["rows"]] == [4, 2, 2]  # the first beside both others
    assert "first bundle against itself" in err
    IsolatedReport.model_validate_json((tmp_path / "i.json").read_bytes())
