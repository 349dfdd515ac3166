"""The TensorRT runner without a GPU: buffers and profiles as they are, driver and engine imitated in memory."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from rfedge.bundle import load_bundle
from rfedge.cli.app import main
from rfedge.contract import GraphContract, TensorSpec
from rfedge.errors import ArtifactError, BackendUnavailableError, ContractError
from rfedge.messages import Observation
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.registry import open_parts
from rfedge.runtimes.tensorrt.buffers import plan_buffers, text_inputs
from rfedge.runtimes.tensorrt.opening import open_bundle, open_engines
from rfedge.runtimes.tensorrt.runner import TensorRtRunner
from tests.runtimes.handmade_bundle import INSTRUCTIONS, Oracle, tiny_config, write_handmade_bundle
from tests.runtimes.imitated_gpu import ORIN, ImitatedDriver, imitated_module, write_engine

SETTINGS = RuntimeSettings(threads=1)
TEXT_LENGTHS = (4, 8, 16)


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Oracle]:
    path = tmp_path / "bundle"
    oracle = write_handmade_bundle(path, tiny_config(chunk_size=2))
    write_engine(load_bundle(path), "backbone", text_lengths=TEXT_LENGTHS)
    return path, oracle


@pytest.fixture
def driver() -> ImitatedDriver:
    return ImitatedDriver()


def frames(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8))
        for _ in range(count)
    ]


def load(path: Path, driver: ImitatedDriver, **changes: bool) -> EdgePolicy:
    settings = RuntimeSettings(threads=1, **changes)  # type: ignore[arg-type]
    return EdgePolicy(open_engines(path, settings, [imitated_module(driver)], ORIN, library=driver))


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("head_engine", [True, False])
def test_it_acts_like_onnxruntime(
    bundle: tuple[Path, Oracle], driver: ImitatedDriver, cuda_graph: bool, head_engine: bool
) -> None:
    path, oracle = bundle
    if head_engine:
        write_engine(load_bundle(path), "head")
    with load(path, driver, cuda_graph=cuda_graph) as ours, EdgePolicy.load(path, settings=SETTINGS) as reference:
        assert isinstance(ours.parts.head, TensorRtRunner) == head_engine
        ours_state, state = ours.initial_state(), reference.initial_state()
        for step, frame in enumerate(frames(oracle.config.window + 4)):
            instruction = INSTRUCTIONS[step % len(INSTRUCTIONS)]
            got, wanted = ours.infer(frame, instruction, ours_state), reference.infer(frame, instruction, state)
            ours_state, state = got.state, wanted.state
            np.testing.assert_allclose(got.actions, wanted.actions, atol=1e-6)
            np.testing.assert_allclose(ours_state.h, state.h, atol=1e-6)
    launches = driver.calls.count("cuGraphLaunch")
    runners = 2 if head_engine else 1
    assert launches >= runners * oracle.config.window if cuda_graph else launches == 0


def test_a_step_is_one_launch_and_one_wait(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    with load(bundle[0], driver) as policy:
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=5)
        del driver.calls[:]
        policy.parts.backbone.infer(inputs)
        assert driver.calls == ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"]
        assert policy.parts.backbone.effective_settings() == {
            "providers": "tensorrt 10.3.0 SM87",
            "text_lengths": "4,8,16",
            "cuda_graph": "captured",
        }


def test_without_graphs_a_step_is_copy_engine_copy_wait(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    with load(bundle[0], driver, cuda_graph=False) as policy:
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=5)
        del driver.calls[:]
        policy.parts.backbone.infer(inputs)
        assert driver.calls == ["cuCtxSetCurrent", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"]
        assert policy.parts.backbone.effective_settings()["cuda_graph"] == "off"


@pytest.mark.parametrize(("num_tokens", "profile"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (16, 2)])
def test_text_runs_in_the_smallest_profile_and_its_padding_changes_nothing(
    bundle: tuple[Path, Oracle], driver: ImitatedDriver, num_tokens: int, profile: int
) -> None:
    path, oracle = bundle
    with load(path, driver) as policy:
        backbone = policy.parts.backbone
        assert isinstance(backbone, TensorRtRunner)
        assert backbone._open is not None
        longest = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(1), dynamic_size=16)
        backbone.infer(longest)  # leaves its text in the buffers
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=num_tokens)
        found = backbone.infer(inputs)["feature"]
        np.testing.assert_allclose(found, oracle.backbone(**inputs), atol=1e-5)
        (key,) = backbone._open._lanes[profile].graphs
        assert (1, TEXT_LENGTHS[profile], policy.config.decoder.width) in key


def test_a_text_beyond_the_longest_profile_is_refused(tmp_path: Path, driver: ImitatedDriver) -> None:
    write_handmade_bundle(tmp_path / "b")
    write_engine(load_bundle(tmp_path / "b"), "backbone", text_lengths=(4,))
    with load(tmp_path / "b", driver) as policy, pytest.raises(ContractError, match="5 tokens, expected at most 4"):
        policy.parts.backbone.infer(policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=5))


def test_inputs_may_be_read_only_and_strided_and_outputs_are_the_callers(
    bundle: tuple[Path, Oracle], driver: ImitatedDriver
) -> None:
    path, oracle = bundle
    with load(path, driver) as policy:
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=5)
        inputs["image_static"] = inputs["image_static"][:, ::-1]
        inputs["text_embedding"].flags.writeable = False
        first = policy.parts.backbone.infer(inputs)["feature"]
        before = first.copy()
        policy.parts.backbone.infer({**inputs, "image_static": 255 - inputs["image_static"]})
        np.testing.assert_array_equal(first, before)
        np.testing.assert_allclose(first, oracle.backbone(**inputs), atol=1e-5)


def test_everything_is_freed_in_order(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    write_engine(load_bundle(bundle[0]), "head")
    with load(bundle[0], driver) as policy:
        policy.infer(frames(1)[0], INSTRUCTIONS[0], policy.initial_state())
        assert driver.memory
        assert driver.executables
        del driver.calls[:]
    gc.collect()
    assert (driver.memory, driver.streams, driver.graphs, driver.executables, driver.retained) == ({}, {}, {}, {}, 0)
    of_one = driver.calls[: driver.calls.index("cuDevicePrimaryCtxRelease_v2") + 1]
    assert of_one[-4:] == ["cuMemFreeHost", "cuMemFree_v2", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"]
    assert set(of_one[1:-4]) == {"cuGraphExecDestroy"}


def test_another_thread_may_call(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    """The overlapped mode infers in a thread of its own, where no context is current before."""
    with load(bundle[0], driver) as policy:
        del driver.calls[:]
        thread = threading.Thread(target=policy.infer, args=(frames(1)[0], INSTRUCTIONS[0], policy.initial_state()))
        thread.start()
        thread.join()
        assert driver.calls[0] == "cuCtxSetCurrent"
        assert "cuGraphLaunch" in driver.calls


def test_what_cannot_be_captured_runs_uncaptured_and_says_so(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    path, oracle = bundle
    driver.capture_fails = True
    with load(path, driver) as policy:
        state = policy.parts.backbone.effective_settings()["cuda_graph"]
        assert state == "refused: CUDA: got cuStreamEndCapture with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=5)
        np.testing.assert_allclose(policy.parts.backbone.infer(inputs)["feature"], oracle.backbone(**inputs), atol=1e-5)
    assert "cuGraphLaunch" not in driver.calls


def test_engines_that_do_not_belong_here_are_refused_with_their_reasons(tmp_path: Path, driver: ImitatedDriver) -> None:
    path = tmp_path / "b"
    write_handmade_bundle(path)
    bundle, module = load_bundle(path), imitated_module(driver)

    def refusal() -> str:
        with pytest.raises(ArtifactError) as error:
            open_engines(path, SETTINGS, [module], ORIN, library=driver)
        return str(error.value)

    assert refusal() == (
        f"backbone engine of {path}: got none, expected one for tensorrt 10.3.0 on SM87. Run `rfedge build {path}` on this "
        "device."
    )
    write_engine(bundle, "backbone", text_lengths=(16,), version="10.16.0")
    assert "(built with tensorrt 10.16.0, this is 10.3.0)" in refusal()
    plan = write_engine(bundle, "backbone", text_lengths=(16,))
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    assert "backbone.plan with sha256" in refusal()
    write_handmade_bundle(tmp_path / "other", seed=1)
    write_engine(load_bundle(tmp_path / "other"), "backbone", text_lengths=(16,))
    (tmp_path / "other" / "engines").rename(tmp_path / "engines")
    for old in (path / "engines").rglob("*.*"):
        if old.is_file():
            old.unlink()
    (tmp_path / "engines").rename(tmp_path / "swapped")
    for folder in (tmp_path / "swapped").iterdir():
        folder.rename(path / "engines" / "copied")
    assert "copied (stale: the graph changed" in refusal()


def test_a_plan_that_does_not_open_is_one_line(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    parts = open_engines(bundle[0], SETTINGS, [imitated_module(driver)], ORIN, library=driver)
    runner = parts.backbone
    assert isinstance(runner, TensorRtRunner)
    runner._plan_path.write_bytes(b"not a plan")
    with pytest.raises(ArtifactError) as error:
        runner.activate()
    assert str(error.value) == (
        "engine backbone.plan: got TensorRT error 'IRuntime::deserializeCudaEngine: Error Code 1: magicTag mismatch', "
        "expected a plan that this TensorRT opens on this GPU. Close other programs on the GPU, or build it again with `rfedge "
        "build --overwrite`."
    )
    assert (driver.memory, driver.streams, driver.retained) == ({}, {}, 0), "nothing stays behind"


def test_a_plan_of_other_tensors_is_refused(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    opened = load_bundle(bundle[0])
    write_engine(opened, "backbone", text_lengths=(16,), graph=opened.path("head"))
    parts = open_engines(bundle[0], SETTINGS, [imitated_module(driver)], ORIN, library=driver)
    with pytest.raises(ArtifactError, match=r"engine backbone.plan inputs: got \{'features': 'float32'"):
        parts.backbone.activate()
    assert driver.retained == 0


def test_without_a_gpu_the_reason_is_one_line(
    bundle: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rfedge.cuda_device._LIBRARY", "libcuda-of-nobody.so")
    with pytest.raises(BackendUnavailableError) as error:
        open_parts("tensorrt", bundle[0], SETTINGS)
    assert str(error.value) == (
        "backend 'tensorrt': got no libcuda-of-nobody.so, expected an NVIDIA GPU. Run the bundle with onnxruntime, which "
        "needs none."
    )
    with pytest.raises(SystemExit) as end:
        main(["run", str(bundle[0]), "--backend", "tensorrt", "--instruction", "open the drawer"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines() == [f"rfedge: {error.value}"]


def test_a_wrong_path_is_told_before_a_missing_gpu(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got no folder"):
        open_bundle(tmp_path / "nothing", SETTINGS)


def test_buffers_are_aligned_apart_and_inputs_first() -> None:
    def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape, axes=("batch", "token")[: len(shape)])

    contract = GraphContract(
        inputs=(spec("pixels", "uint8", 1, 257), spec("mask", "bool", 1, -1), spec("text", "float32", 1, -1)),
        outputs=(spec("feature", "float32", 1, 3),),
    )
    plan = plan_buffers(contract, {"pixels": (1, 257), "mask": (1, 16), "text": (1, 16), "feature": (1, 3)})
    assert [(slot.name, slot.offset, slot.size_bytes) for slot in (*plan.inputs, *plan.outputs)] == [
        ("pixels", 0, 257),
        ("mask", 512, 16),
        ("text", 768, 64),
        ("feature", 1024, 12),
    ]
    assert (plan.input_bytes, plan.total_bytes) == (1024, 1280)
    assert text_inputs(contract) == {"mask", "text"}
    block = np.full(plan.total_bytes, 7, np.uint8)
    text = plan.inputs[2]
    text.write(block, np.array([[1.5, 2.5]], np.float32), (1, 4))
    np.testing.assert_array_equal(text.view(block, (1, 4)), [[1.5, 2.5, 0, 0]])
    assert np.shares_memory(text.view(block, (1, 4)), block)
    assert block[767] == block[784] == 7, "neighbours stay"
