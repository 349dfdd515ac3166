"""The comparison at full size, on `tiny`: every row in a process of its own, and the gates on its figures."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from rfedge.benchmarks.latency.optimum_quantize import QUANTIZED, missing_memory, missing_package, quantize_with_optimum
from rfedge.benchmarks.latency.peer_artifacts import prepare_peers
from rfedge.benchmarks.latency.peers import (
    AGAIN,
    OPTIMUM,
    OURS,
    REFERENCE,
    PeerLimit,
    PeerRow,
    PeersPlan,
    PeersReport,
    assert_peers,
    run_peers,
)
from rfedge.errors import ConfigError, GateError
from rfedge.export.passes.graph_files import write_graph
from rfedge.records.machine import provenance
from rfedge.records.statistics import Ratio
from tests.export.float_graphs import draw, graph_of, relative_rms, run
from tests.synthetic_demonstrations import write_demonstrations


def report(int8: float, fp32: float, peak_gib: float) -> PeersReport:
    def row(name: str, speedup: float) -> PeerRow:
        ratio = Ratio(value=speedup, low=speedup, high=speedup)
        return PeerRow(name=name, speedup=ratio, peak_bytes=int(peak_gib * 2**30))

    return PeersReport(
        schema_version=1,
        **provenance(),
        size="tiny",
        num_tokens=5,
        threads=1,
        rounds=1,
        calls=1,
        rows=(row(REFERENCE, 1.0), row(OURS, int8), row("rfedge fp32", fp32)),
        noise_floor=Ratio(value=1.0, low=1.0, high=1.0),
        limit=PeerLimit(
            int8_ops=1.0, fp32_flops=1.0, bandwidth_bytes=1.0, int8_ms=1.0, fp32_ms=1.0, int8_share=None, fp32_share=None
        ),
    )


def test_the_gates_hold_speed_and_memory() -> None:
    assert_peers(report(4.6, 1.6, 2.9), int8=4.5, fp32=1.5, peak_gib=3.0)
    words = r"peers of tiny: got rfedge int8 4.40x of 4.5x; rfedge fp32 1.20x of 1.5x; rfedge int8 peak 3.10 GiB of 3 GiB"
    with pytest.raises(GateError, match=words):
        assert_peers(report(4.4, 1.2, 3.1), int8=4.5, fp32=1.5, peak_gib=3.0)


def test_a_plan_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds: got 0, expected at least 1"):
        PeersPlan(size="tiny", folder=tmp_path, rounds=0)
    with pytest.raises(ConfigError, match="row: got 'rfedge int9', expected one of .*did you mean 'rfedge int8'"):
        PeersPlan(size="tiny", folder=tmp_path, rows=("rfedge int9",))
    with pytest.raises(ConfigError, match="got no checkpoint/ in the folder, expected PyTorch fp32"):
        run_peers(PeersPlan(size="tiny", folder=tmp_path))


def test_int8_is_not_calibrated_on_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "fp32").mkdir()
    with pytest.raises(ConfigError, match="got no int8/, expected --data to calibrate on"):
        prepare_peers("tiny", tmp_path, data=None, seed=0)


def test_optimum_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "backbone.onnx").write_bytes(b"")
    assert missing_memory(tmp_path / "backbone.onnx") is None
    with (tmp_path / "backbone.onnx.data").open("wb") as file:
        file.truncate(10**12)  # a file of nothing takes no room
    assert str(missing_memory(tmp_path / "backbone.onnx")).startswith("needs 4000.0 GB to quantize 1000.0 GB, ")
    if missing_package() is not None:
        assert missing_package() == "optimum-onnx is not installed (pip install 'rfedge[peers]')"
        assert quantize_with_optimum(tmp_path / "backbone.onnx", tmp_path / "optimum") == missing_package()
    assert not (tmp_path / "optimum").exists()


@pytest.mark.skipif(missing_package() is not None, reason=str(missing_package()))
def test_optimum_quantizes_and_a_failure_leaves_its_last_line(tmp_path: Path) -> None:
    weight, x = draw(np.random.default_rng(0), 64, 8), draw(np.random.default_rng(1), 2, 64)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (2, 64)}, ["y"])
    write_graph(model, tmp_path / "backbone.onnx")
    assert quantize_with_optimum(tmp_path / "backbone.onnx", tmp_path / "optimum") is None
    result = run(tmp_path / "optimum" / QUANTIZED, {"x": x})[0]
    assert 0 < relative_rms(result, x @ weight) < 0.03
    (tmp_path / "backbone.onnx").write_text("no protobuf")
    assert quantize_with_optimum(tmp_path / "backbone.onnx", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_every_row_runs(tmp_path: Path) -> None:
    demonstrations = write_demonstrations(tmp_path / "demonstrations")
    prepare_peers("tiny", tmp_path / "peers", data=demonstrations, seed=0)
    measured = run_peers(PeersPlan(size="tiny", folder=tmp_path / "peers", rounds=2, calls=3, threads=1))
    by_name = {row.name: row for row in measured.rows}
    failed = {name: row.failed for name, row in by_name.items() if row.failed is not None}
    absent = {"rfedge int8 on OpenVINO": "openvino is not installed", OPTIMUM: "optimum-onnx is not installed"}
    assert set(failed) <= set(absent), failed
    assert all(absent[name] in str(reason) for name, reason in failed.items())
    assert by_name[REFERENCE].speedup is not None
    assert by_name[REFERENCE].speedup.value == 1.0
    for name, row in by_name.items():
        if name not in failed:
            assert row.call_ms is not None
            assert row.call_ms.n == 6
            assert row.peak_bytes is not None
    assert measured.limit.int8_share is not None
    assert by_name[AGAIN].call_ms is not None
