"""Predictions by hand, the device table, and this machine as a device."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.config import preset
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.machine.gpu import Gpu
from rfedge.policies import find_bundle
from rfedge.runtimes.backends.matmul_model import matmul_model
from rfedge.runtimes.roofline.analytic_work import analytic_work
from rfedge.runtimes.roofline.devices import DEVICES, Device, device, device_of_board
from rfedge.runtimes.roofline.graph_work import bundle_work
from rfedge.runtimes.roofline.report import Inspection, inspect_config
from rfedge.runtimes.roofline.roofline import predict
from rfedge.runtimes.roofline.this_machine import cpu_device, device_of_gpu, measure_cpu, this_gpu
from rfedge.runtimes.roofline.work import Arithmetic, MatMul, PolicyWork
from tests.errors import raises
from tests.tolerances import assert_same_in_fp32

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
RECORD = RESULTS / "predictions_cpu_202611.json"


def cpu_of(fp32_flops: float, int8_ops: float, bandwidth_bytes: float, launch_us: float) -> Device:
    return cpu_device("recorded", 2**34, bandwidth_bytes, {"fp32": fp32_flops, "int8": int8_ops}, launch_us)


def one_matmul(arithmetic: Arithmetic = "int8", *, macs: int = 500_000_000, weight_bytes: int = 1_000_000) -> PolicyWork:
    matmul = MatMul("decoder.layers.0.block", macs, arithmetic, arithmetic, weight_bytes, weight_bytes, 0)
    return PolicyWork((matmul,), {}, head_steps=1, operators={"decoder": 10})


def plain_device(**changes: object) -> Device:
    base = Device("plain", 10_000_000, 1e9, {"int8": 4e12, "fp32": 1e12}, "made up")
    base = dataclasses.replace(base, best=0.5, worst=0.25, least_launch_us=50, most_launch_us=100)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_a_matmul_takes_the_longest_of_arithmetic_memory_and_a_launch() -> None:
    """1e9 operations at half of 4e12 a second: 0.5 ms. 1e6 bytes at half of 1e9 a second: 2 ms. A launch: 0.05 ms."""
    decoder = predict(one_matmul(), plain_device()).stages["decoder"]
    assert (decoder.low_ms, decoder.bound) == (pytest.approx(2.0), "memory")
    assert decoder.high_ms == pytest.approx(4.0 + 10 * 0.1), "at a quarter, and ten launches"
    busy = predict(one_matmul(macs=5_000_000_000), plain_device())
    assert (busy.low_ms, busy.stages["decoder"].bound) == (pytest.approx(5.0), "compute")
    assert busy.high_ms == pytest.approx(10.0 + 1.0)
    assert busy.middle_ms == pytest.approx((5.0 * 11.0) ** 0.5)
    tiny = predict(one_matmul(macs=1000, weight_bytes=1000), plain_device())
    assert (tiny.low_ms, tiny.longest, tiny.stages["decoder"].bound) == (pytest.approx(0.05), "decoder", "launches")
    assert busy.stages["vision"].high_ms == 0


def test_a_small_policy_on_a_board_takes_its_launches() -> None:
    prediction = predict(analytic_work(preset("playtable-small"), "int8"), device("orin-nano-8gb-super"))
    assert prediction.high_ms > 2.0, "no policy of hundreds of operators is promised within a millisecond"
    assert prediction.low_ms < 0.5 * prediction.high_ms


@pytest.mark.parametrize("row", json.loads(RECORD.read_text())["bundles"], ids=lambda row: row["bundle"])
def test_recorded_measurements_lie_in_the_ranges(row: dict[str, Any]) -> None:
    assert row["low_ms"] < row["measured_ms"] < row["high_ms"]
    assert row["middle_ms"] / row["measured_ms"] - 1 == pytest.approx(row["error"], abs=0.005)
    assert abs(row["error"]) < 0.35
    cells = (
        row["bundle"],
        row["precision"],
        f"{row['low_ms']:.1f} to {row['high_ms']:.1f}",
        f"{row['measured_ms']:.1f}",
        f"{row['error']:+.0%}",
    )
    assert f"| {' | '.join(cells)} |" in (RESULTS.parents[1] / "docs/how-to/doctor_and_inspect.md").read_text()


def test_the_shipped_bundle_and_full_size_lie_where_they_were_measured() -> None:
    """The machines' own figures, as recorded, with the counts and the model of today."""
    record = json.loads(RECORD.read_text())
    shipped = predict(bundle_work(load_bundle(find_bundle(Path("playtable-jump-step")))), cpu_of(**record["device"]))
    measured_ms = record["bundles"][0]["measured_ms"]
    assert shipped.low_ms < measured_ms < shipped.high_ms
    full = json.loads((RESULTS / "peers_M-3B_cpu_202611.json").read_text())
    limit, rows = full["limit"], {row["name"]: row for row in full["rows"]}
    cpu = cpu_of(limit["fp32_flops"], limit["int8_ops"], limit["bandwidth_bytes"], record["device"]["launch_us"])
    for precision in ("int8", "fp32"):
        work = analytic_work(preset("M-3B"), precision, text_tokens=full["num_tokens"])
        prediction, measured_ms = predict(work, cpu), rows[f"rfedge {precision}"]["call_ms"]["p50"]
        assert prediction.low_ms < measured_ms < prediction.high_ms, precision
        assert abs(prediction.middle_ms / measured_ms - 1) < 0.25


def test_missing_arithmetic_falls_back_to_the_next_wider_kind_and_is_named() -> None:
    only_fp32 = plain_device(peaks={"fp32": 1e12})
    prediction = predict(one_matmul(), only_fp32)
    assert prediction.substitutes == {"int8": "fp32"}
    assert prediction.stages["decoder"].low_ms == pytest.approx(2.0)
    assert predict(one_matmul("bf16"), plain_device(peaks={"fp16": 2e12, "fp32": 1e12})).substitutes == {"bf16": "fp16"}
    assert predict(one_matmul(), plain_device()).substitutes == {}


def test_memory_that_is_reserved_is_not_free() -> None:
    assert predict(one_matmul(), plain_device()).fits
    assert not predict(one_matmul(), plain_device(reserved_bytes=9_500_000)).fits
    full_size = analytic_work(preset("M-3B"), "fp32")
    assert not predict(full_size, device("orin-nano-8gb")).fits, "10 GB of weights"
    assert predict(analytic_work(preset("M-3B"), "int8"), device("orin-nano-8gb")).fits


def test_the_table_is_dense_and_consistent() -> None:
    for item in DEVICES.values():
        assert item.peaks["int8"] == pytest.approx(2 * item.peaks["fp16"], rel=0.05), item.name
        assert item.peaks["fp16"] > item.peaks["fp32"]
        assert item.source
        assert item.power_mode
    modes = [device(f"agx-orin-64gb{mode}") for mode in ("", "-50w", "-30w", "-15w")]
    assert [item.peaks["int8"] / 1e12 for item in modes] == [85, 54.5, 20.5, 7]
    assert modes[0].peaks["int8"] / modes[-1].peaks["int8"] == pytest.approx(12, abs=0.5), "15 W is 12 times slower"


def test_predictions_keep_the_published_floors() -> None:
    """Weights of the decoder alone, fp16: 41 ms at 102 GB/s and 20 at 204.8; nothing may be predicted below them."""
    work = analytic_work(preset("M-3B"), "fp16")
    assert predict(work, device("orin-nx-16gb")).stages["decoder"].low_ms > 39
    assert predict(work, device("agx-orin-64gb")).stages["decoder"].low_ms > 19


def test_unknown_devices_are_answered_with_the_nearest_name() -> None:
    with raises(ConfigError, "device", got="'agx-orin-64g'", expected="one of ...did you mean 'agx-orin-64gb' or..."):
        device("agx-orin-64g")
    with raises(ConfigError, expected="...did you mean 'orin-nano-8gb' or ...'agx-orin-64gb' or ...?)"):
        device("orin")
    with raises(ConfigError, expected="...did you mean 'thor-t5000'..."):
        inspect_config(preset("tiny"), "fp32", devices=("this-cpu", "thor-t500"))


@pytest.mark.parametrize(
    ("model", "memory_gb", "name"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", 64.3, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 32.0, "agx-orin-32gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7.99, "orin-nano-8gb-super"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 7.99, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.9, None),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 16.4, "orin-nx-16gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 131.9, "thor-t5000"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 8.0, None),
    ],
)
def test_boards_are_recognised(model: str, memory_gb: float, name: str | None) -> None:
    assert device_of_board(model, int(memory_gb * 1e9)) == name


@pytest.mark.parametrize(
    ("gpu", "fp16_tflops", "bandwidth_gb_s"),
    [
        # H100 SXM: 16896 cores, boost 1830 MHz in the data sheet's 989 TFLOPS; 2619 MHz on 5120 bits.
        (Gpu("H100", 90, 80 * 2**30, "", "", "", cores=16896, clock_hz=1.83e9, bandwidth=2 * 2.619e9 * 5120 / 8), 989, 3350),
        (Gpu("A100", 80, 40 * 2**30, "", "", "", cores=6912, clock_hz=1.41e9, bandwidth=1.555e12), 312, 1555),
        (Gpu("RTX 4090", 89, 24 * 2**30, "", "", "", cores=16384, clock_hz=2.52e9, bandwidth=1.008e12), 330, 1008),
    ],
    ids=["h100", "a100", "rtx-4090"],
)
def test_peaks_from_clocks_and_units_are_those_of_the_data_sheet(
    gpu: Gpu, fp16_tflops: float, bandwidth_gb_s: float
) -> None:
    found = device_of_gpu(gpu)
    assert found.peaks["fp16"] / 1e12 == pytest.approx(fp16_tflops, rel=0.01)
    assert found.peaks["int8"] == 2 * found.peaks["fp16"]
    assert found.bandwidth / 1e9 == pytest.approx(bandwidth_gb_s, rel=0.01)
    assert found.origin == "derived"


def test_a_gpu_that_does_not_tell_its_clocks_is_no_device() -> None:
    assert device_of_gpu(Gpu("Orin", 87, 8 * 10**9, "540", "12.6", "the CUDA driver")) is None
    assert device_of_gpu(Gpu("K80", 37, 12 * 10**9, "470", "", "NVML", cores=2496, clock_hz=8e8, bandwidth=2.4e11)) is None


def test_no_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from rfedge.machine.probing import Absent

    def none() -> Gpu:
        raise Absent("no NVIDIA GPU (nobody knows one)")

    monkeypatch.setattr("rfedge.runtimes.roofline.this_machine.probe_gpu", none)
    with raises(BackendUnavailableError, "this-gpu", got="no NVIDIA GPU (nobody knows one)", expected="an NVIDIA GPU"):
        this_gpu()


def test_this_cpu_is_measured_in_a_plausible_range() -> None:
    cpu = measure_cpu(threads=1)
    assert cpu.origin == "measured"
    for kind in ("fp32", "int8"):
        assert 1e8 < cpu.peaks[kind] < 1e14  # type: ignore[index]
    assert 1e8 < cpu.bandwidth < 1e13
    assert cpu.memory_bytes > 0
    assert "1 threads" in cpu.source


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_timed_matmul_is_a_valid_model_and_a_right_one(kind: str) -> None:
    model = matmul_model(kind, 4, 32, 8)  # type: ignore[arg-type]
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    x = np.random.default_rng(0).uniform(-1, 1, (4, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )
    (y,) = session.run(None, {"x": x})
    weight = np.linspace(-1, 1, 32 * 8, dtype=np.float32).reshape(32, 8)
    if kind == "fp32":
        assert_same_in_fp32(y, x @ weight, 32)
    else:
        np.testing.assert_allclose(y, x @ weight, atol=0.1)


def test_the_timed_int8_matmul_runs_on_an_integer_kernel(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        matmul_model("int8", 4, 32, 8),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(DISABLED_OPTIMIZERS),
    )
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "MatMulIntegerToFloat" in operators
    assert "MatMul" not in operators


def test_the_roofline_is_drawn_or_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rfedge.runtimes.roofline.report import plot_roofline

    inspection: Inspection = inspect_config(preset("M-3B"), "int8", devices=tuple(DEVICES))
    path = tmp_path / "roofline.png"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        with raises(BackendUnavailableError, "--plot", got="no matplotlib", remedy="pip install 'rfedge[plots]'."):
            plot_roofline(inspection, path)
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("matplotlib")
    plot_roofline(inspection, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in tmp_path.iterdir()] == ["roofline.png"]
