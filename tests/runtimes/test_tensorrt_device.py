"""The TensorRT runner on a GPU: its numbers against onnxruntime's, its time against PyTorch's. Run with `pytest -m gpu`."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.config import preset
from rfedge.errors import BackendUnavailableError
from rfedge.export.tensorrt.options import BuildOptions
from rfedge.export.tensorrt.pipeline import build_bundle
from rfedge.machine.power.sources import NvmlSource
from rfedge.messages import Observation
from rfedge.nvidia.device import read_cuda_device
from rfedge.nvidia.tensorrt import TARGETS, TensorRt, load_tensorrt
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends.tensorrt.cuda_driver import CudaDriver
from rfedge.runtimes.backends.tensorrt.runner import TensorRtRunner
from tests.export.tensorrt_bundles import write_tiny_bundles
from tests.runtimes.handmade_bundle import INSTRUCTIONS, write_handmade_bundle

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> None:
    try:
        read_cuda_device()
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=TARGETS)
def module(request: pytest.FixtureRequest, device: None) -> TensorRt:
    try:
        return load_tensorrt(request.param)
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("device")
def test_the_driver_copies_waits_captures_and_replays() -> None:
    driver = CudaDriver()
    stream = driver.create_stream()
    host, size = driver.allocate_pinned(4096), 2048
    there = driver.allocate_device(size)
    host[:size], host[size:] = 7, 0
    driver.copy_to_device(there, host.ctypes.data, size, stream)
    driver.copy_to_host(host.ctypes.data + size, there, size, stream)
    driver.synchronize(stream)
    assert (host == 7).all()
    driver.begin_capture(stream)
    driver.copy_to_device(there, host.ctypes.data, size, stream)
    driver.copy_to_host(host.ctypes.data + size, there, size, stream)
    graph = driver.end_capture(stream)
    host[:size] = 9
    driver.launch(graph, stream)
    driver.synchronize(stream)
    assert (host == 9).all()
    driver.destroy_graph(graph)
    driver.free_device(there)
    driver.free_pinned(host)
    driver.destroy_stream(stream)
    driver.close()


@pytest.mark.trt
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_it_acts_like_onnxruntime(module: TensorRt, tmp_path: Path, cuda_graph: bool) -> None:
    path = tmp_path / "bundle"
    write_handmade_bundle(path)
    build_bundle(path, BuildOptions(target=module.name, text_lengths=(4, 8, 16)))
    settings = RuntimeSettings(threads=1, cuda_graph=cuda_graph)
    rng = np.random.default_rng(0)
    with (
        EdgePolicy.load(path, backend="tensorrt", settings=settings) as ours,
        EdgePolicy.load(path, settings=settings) as reference,
    ):
        assert isinstance(ours.parts.backbone, TensorRtRunner)
        assert isinstance(ours.parts.head, TensorRtRunner)
        assert ours.parts.backbone.effective_settings()["cuda_graph"] == ("captured" if cuda_graph else "off")
        states = [ours.initial_state(), reference.initial_state()]
        for step in range(ours.config.window + 4):
            frame = Observation(rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8))
            words = INSTRUCTIONS[step % len(INSTRUCTIONS)]
            results = [policy.infer(frame, words, state) for policy, state in zip((ours, reference), states, strict=True)]
            states = [result.state for result in results]
            np.testing.assert_allclose(results[0].actions, results[1].actions, atol=1e-3)


def median_ms(call: Callable[[], Any], *, rounds: int = 50) -> float:
    for _ in range(10):
        call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


@pytest.mark.trt
def test_its_backbone_is_faster_than_pytorch_eager_and_captured(module: TensorRt, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    from rfedge.model import build_policy

    path = write_tiny_bundles(tmp_path)["fp32"]
    build_bundle(path, BuildOptions(target=module.name, stage="backbone"))
    contract = load_bundle(path).contract.backbone
    inputs = contract.sample_inputs(np.random.default_rng(0))
    backbone = build_policy(preset("tiny"), seed=0).eval().backbone.cuda()
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    results: dict[str, float] = {}
    with torch.inference_mode():

        def eager() -> Any:
            for name, array in inputs.items():
                tensors[name].copy_(torch.from_numpy(array))
            return backbone(**tensors).cpu()

        wanted = eager().numpy()
        results["PyTorch eager"] = median_ms(eager)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = backbone(**tensors)

        def replay() -> Any:
            for name, array in inputs.items():
                tensors[name].copy_(torch.from_numpy(array))
            graph.replay()
            return captured.cpu()

        results["PyTorch CUDA graph"] = median_ms(replay)
    from rfedge.runtimes.backends.registry import open_parts

    runner = open_parts("tensorrt", path, RuntimeSettings(check_inputs=False)).backbone
    with runner:
        found = runner.infer(inputs)["feature"]
        results[module.name] = median_ms(lambda: runner.infer(inputs))
    print({name: round(ms, 3) for name, ms in results.items()})
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-2
    assert results[module.name] < results["PyTorch eager"]
    assert results[module.name] < 1.5 * results["PyTorch CUDA graph"]


@pytest.mark.usefixtures("device")
def test_nvml_tells_the_gpu_s_energy() -> None:
    pytest.importorskip("pynvml")
    source = NvmlSource()
    first = source.read()
    time.sleep(0.5)
    second = source.read()
    assert (first.energy_j, first.power_w) != (None, None)
    if first.energy_j is not None and second.energy_j is not None:
        assert second.energy_j > first.energy_j
    source.close()
