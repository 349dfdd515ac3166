"""The TensorRT runner without a GPU: buffers and profiles as they are, driver and engine imitated in memory."""

import gc
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rfedge.bundle.artifact import load_bundle, write_bundle
from rfedge.cli.app import main
from rfedge.contract import GraphContract, TensorSpec, policy_contract
from rfedge.errors import ArtifactError, BackendUnavailableError, ContractError
from rfedge.messages import Observation
from rfedge.nvidia.device import CudaDevice, read_cuda_device
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.backends.tensorrt.opening import open_bundle, open_engines
from rfedge.runtimes.backends.tensorrt.runner import TensorRtRunner, plan_buffers, text_inputs
from tests.errors import raises
from tests.export.tensorrt_bundles import build_ahead, load_rtx
from tests.runtimes.handmade_bundle import INSTRUCTIONS, Oracle, _model, tiny_config, write_handmade_bundle
from tests.runtimes.imitated_gpu import ORIN, ImitatedDriver, imitated_module, write_engine
from tests.tolerances import assert_same_in_fp32, policy_terms

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
            assert_same_in_fp32(got.actions, wanted.actions, oracle.terms)
            assert_same_in_fp32(ours_state.h, state.h, oracle.terms)
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
        assert_same_in_fp32(found, oracle.backbone(**inputs), oracle.backbone_terms)
        (key,) = backbone._open._lanes[profile].graphs
        assert (1, TEXT_LENGTHS[profile], policy.config.decoder.width) in key


def test_a_text_beyond_the_longest_profile_is_refused(tmp_path: Path, driver: ImitatedDriver) -> None:
    write_handmade_bundle(tmp_path / "b")
    write_engine(load_bundle(tmp_path / "b"), "backbone", text_lengths=(4,))
    with load(tmp_path / "b", driver) as policy, raises(ContractError, got="5 tokens"):
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
        assert_same_in_fp32(first, oracle.backbone(**inputs), oracle.backbone_terms)


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
        assert_same_in_fp32(policy.parts.backbone.infer(inputs)["feature"], oracle.backbone(**inputs), oracle.backbone_terms)
    assert "cuGraphLaunch" not in driver.calls


def test_engines_that_do_not_belong_here_are_refused_with_their_reasons(tmp_path: Path, driver: ImitatedDriver) -> None:
    path = tmp_path / "b"
    write_handmade_bundle(path)
    bundle, module = load_bundle(path), imitated_module(driver)

    def refuses(got: str) -> None:
        with raises(ArtifactError, got=got):
            open_engines(path, SETTINGS, [module], ORIN, library=driver)

    refuses("none")
    write_engine(bundle, "backbone", text_lengths=(16,), version="10.16.0")
    refuses("...(built with tensorrt 10.16.0, this is 10.3.0)...")
    plan = write_engine(bundle, "backbone", text_lengths=(16,))
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    refuses("...backbone.plan with sha256...")
    write_handmade_bundle(tmp_path / "other", seed=1)
    write_engine(load_bundle(tmp_path / "other"), "backbone", text_lengths=(16,))
    (tmp_path / "other" / "engines").rename(tmp_path / "engines")
    for old in (path / "engines").rglob("*.*"):
        if old.is_file():
            old.unlink()
    (tmp_path / "engines").rename(tmp_path / "swapped")
    for folder in (tmp_path / "swapped").iterdir():
        folder.rename(path / "engines" / "copied")
    refuses("...copied (stale: the graph changed...")


def test_a_plan_that_does_not_open_is_one_line(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    parts = open_engines(bundle[0], SETTINGS, [imitated_module(driver)], ORIN, library=driver)
    runner = parts.backbone
    assert isinstance(runner, TensorRtRunner)
    runner._plan_path.write_bytes(b"not a plan")
    got = "TensorRT error 'IRuntime::deserializeCudaEngine: Error Code 1: magicTag mismatch'"
    with raises(ArtifactError, "engine backbone.plan", got=got):
        runner.activate()
    assert (driver.memory, driver.streams, driver.retained) == ({}, {}, 0), "nothing stays behind"


def test_a_plan_of_other_tensors_is_refused(bundle: tuple[Path, Oracle], driver: ImitatedDriver) -> None:
    opened = load_bundle(bundle[0])
    write_engine(opened, "backbone", text_lengths=(16,), graph=opened.path("head"))
    parts = open_engines(bundle[0], SETTINGS, [imitated_module(driver)], ORIN, library=driver)
    with raises(ArtifactError, "engine backbone.plan inputs", got="{'features': 'float32'..."):
        parts.backbone.activate()
    assert driver.retained == 0


def test_without_a_gpu_the_reason_is_one_line(
    bundle: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rfedge.nvidia.device._LIBRARY", "libcuda-of-nobody.so")
    with raises(BackendUnavailableError, "backend 'tensorrt'", got="no libcuda-of-nobody.so") as error:
        open_parts("tensorrt", bundle[0], SETTINGS)
    with pytest.raises(SystemExit) as end:
        main(["run", str(bundle[0]), "--backend", "tensorrt", "--instruction", "open the drawer"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines() == [f"rfedge: {error.value}"]


def test_a_wrong_path_is_told_before_a_missing_gpu(tmp_path: Path) -> None:
    with raises(ArtifactError, got="no folder"):
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


def write_two_stage_bundle(path: Path) -> None:
    """A bundle whose backbone is two graphs: latents that repeat the mean pixels, and their mean beside the mean text."""
    config = tiny_config(chunk_size=2)
    contract = policy_contract(config, two_stages=True)
    rng, node = np.random.default_rng(3), helper.make_node
    write_handmade_bundle(path.with_name("lender"), config)
    pixels = rng.standard_normal((6, config.vision.width)).astype(np.float32)
    weight = rng.standard_normal((config.vision.width, config.feature_size)).astype(np.float32) / 8
    axes = {"pixel_axes": np.array([1, 2]), "token_axis": np.array([1]), "last_axis": np.array([2])}
    vision = [
        *(node("Cast", [f"image_{camera}"], [f"{camera}_float"], to=TensorProto.FLOAT) for camera in ("static", "gripper")),
        *(
            node("ReduceMean", [f"{camera}_float", "pixel_axes"], [f"{camera}_mean"], keepdims=0)
            for camera in ("static", "gripper")
        ),
        node("Concat", ["static_mean", "gripper_mean"], ["means"], axis=1),
        node("MatMul", ["means", "pixels"], ["row"]),
        node("Unsqueeze", ["row", "token_axis"], ["column"]),
        node("Expand", ["column", "latents"], ["media"]),
    ]
    decoder = [
        node("ReduceMean", ["media", "token_axis"], ["seen"], keepdims=0),
        node("MatMul", ["seen", "weight"], ["MatMul"]),
        node("Cast", ["text_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last_axis"], ["mask_column"]),
        node("Mul", ["text_embedding", "mask_column"], ["masked"]),
        node("ReduceSum", ["masked", "token_axis"], ["text"], keepdims=0),
        node("Add", ["MatMul", "text"], ["sum"]),
        node("Tanh", ["sum"], ["feature"]),
    ]
    latents = np.array([1, config.latents_per_frame, config.vision.width])
    stages = contract.backbone_stages
    with write_bundle(path) as writer:
        onnx.save(
            _model(stages["vision"], vision, {**axes, "pixels": pixels / 255, "latents": latents}),
            writer.add("vision.onnx", "vision"),
        )
        onnx.save(_model(stages["decoder"], decoder, {**axes, "weight": weight}), writer.add("decoder.onnx", "decoder"))
        for name, role in (("head.onnx", "head"), ("embedding.safetensors", "embedding"), ("tokenizer.json", "tokenizer")):
            shutil.copy(path.with_name("lender") / name, writer.add(name, role))  # type: ignore[arg-type]
        manifest = load_bundle(path.with_name("lender")).manifest
        writer.finish(manifest.model_copy(update={"contract": contract}))


@pytest.mark.parametrize("one_stage_at_a_time", [True, False])
def test_a_backbone_in_two_stages_is_two_engines(tmp_path: Path, driver: ImitatedDriver, one_stage_at_a_time: bool) -> None:
    path = tmp_path / "two"
    write_two_stage_bundle(path)
    bundle = load_bundle(path)
    write_engine(bundle, "vision")
    with raises(ArtifactError, "decoder engine of ...", got="tensorrt-10.3.0-sm87-... (no decoder)"):
        load(path, driver)
    write_engine(bundle, "decoder", text_lengths=(4, 16))
    with (
        load(path, driver, one_stage_at_a_time=one_stage_at_a_time) as ours,
        EdgePolicy.load(path, settings=SETTINGS) as ort,
    ):
        states = [ours.initial_state(), ort.initial_state()]
        for step, frame in enumerate(frames(4)):
            words = INSTRUCTIONS[step % len(INSTRUCTIONS)]
            results = [policy.infer(frame, words, state) for policy, state in zip((ours, ort), states, strict=True)]
            states = [result.state for result in results]
            assert_same_in_fp32(results[0].actions, results[1].actions, policy_terms(bundle.policy))
        assert (driver.retained == 0) == one_stage_at_a_time, "one at a time holds nothing between two calls"
    assert (driver.memory, driver.executables, driver.retained) == ({}, {}, 0)


def test_a_real_plan_goes_as_far_as_this_machine_does(tmp_path: Path, driver: ImitatedDriver) -> None:
    """TensorRT for RTX builds without a GPU and opens nothing without one: its own words reach the user, in one line."""
    module = load_rtx()
    try:
        read_cuda_device()
    except BackendUnavailableError:
        pass
    else:
        pytest.skip("there is a GPU: tests/runtimes/test_tensorrt_device.py")
    path = tmp_path / "b"
    write_handmade_bundle(path)
    build_ahead(path, 86, text_lengths=(8, 16))
    here = CudaDevice(name="RTX A2000", sm=86, cuda="13.0", driver="580.1", memory_bytes=8 << 30)
    parts = open_engines(path, SETTINGS, [module], here, library=driver)
    with raises(ArtifactError, "engine backbone.plan", got="TensorRT error ...CUDA driver version is insufficient..."):
        parts.backbone.activate()
    assert driver.retained == 0
    there = CudaDevice(name="RTX 4090", sm=89, cuda="13.0", driver="580.1", memory_bytes=24 << 30)
    with raises(ArtifactError, got="...(built for SM86, this is SM89)"):
        open_engines(path, SETTINGS, [module], there, library=driver)
