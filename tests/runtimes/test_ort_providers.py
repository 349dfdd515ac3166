"""Execution providers by name, inputs on a device, and what a step allocates."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import graph_hashes
from rfedge.errors import ConfigError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE, Observation
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends.ort import OrtRunner
from rfedge.runtimes.backends.ort_providers import (
    DeviceInputs,
    device_of,
    engine_cache_folder,
    parse_provider,
    provider_options,
)
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS, Oracle, write_handmade_bundle
from tests.tolerances import assert_same_in_fp32

KEPT_BYTES = 10_000
IMAGE_BYTES = int(np.prod(STATIC_IMAGE_SHAPE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    path = tmp_path_factory.mktemp("bundles") / "fp32"
    return path, write_handmade_bundle(path)


def frames(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(rng.integers(0, 256, STATIC_IMAGE_SHAPE, np.uint8), rng.integers(0, 256, GRIPPER_IMAGE_SHAPE, np.uint8))
        for _ in range(count)
    ]


@pytest.mark.parametrize("check_inputs", [True, False])
@pytest.mark.parametrize("mirrored", [True, False])
def test_a_step_allocates_nothing_of_the_size_of_an_image(
    bundle: tuple[Path, Oracle], check_inputs: bool, mirrored: bool
) -> None:
    """`mirrored`: frames whose rows run backwards, as a camera that hangs upside down gives them: no contiguous arrays."""
    seen = [Observation(frame.static[:, ::-1], frame.gripper[:, ::-1]) if mirrored else frame for frame in frames(4)]
    with EdgePolicy.load(bundle[0], settings=RuntimeSettings(threads=1, check_inputs=check_inputs)) as policy:
        state = policy.initial_state()
        tracemalloc.start()
        try:
            for step in range(policy.config.window + 5):  # from then on each step's state replaces one of the same size
                state = policy.infer(seen[step % 4], INSTRUCTIONS[0], state).state
            before = tracemalloc.take_snapshot()
            most = 0
            for step in range(100):
                tracemalloc.reset_peak()
                held, _ = tracemalloc.get_traced_memory()
                state = policy.infer(seen[step % 4], INSTRUCTIONS[0], state).state
                most = max(most, tracemalloc.get_traced_memory()[1] - held)
            after = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    assert most < IMAGE_BYTES / 2, "an image, or a copy of one, was allocated"
    assert _large_blocks(after) == _large_blocks(before), "blocks stay behind"


def _large_blocks(snapshot: tracemalloc.Snapshot) -> list[int]:
    return sorted(trace.size for trace in snapshot.traces if trace.size >= KEPT_BYTES)


def test_short_names_are_orders_of_preference() -> None:
    assert parse_provider("cpu") == ("CPUExecutionProvider",)
    assert parse_provider("cuda") == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert parse_provider("tensorrt")[0] == "TensorrtExecutionProvider"
    expected = "one of cpu, cuda, tensorrt, openvino (did you mean 'cuda'?)"
    with raises(ConfigError, "--provider", got="'cude'", expected=expected):
        parse_provider("cude")


def test_options_keep_fp32_what_it_is() -> None:
    assert provider_options("CUDAExecutionProvider") == {"use_tf32": "0"}
    assert provider_options("OpenVINOExecutionProvider")["precision"] == "ACCURACY"
    assert provider_options("CPUExecutionProvider") == {}
    assert [device_of(parse_provider(name)[0]) for name in ("cpu", "openvino", "cuda", "tensorrt")] == [
        "cpu",
        "cpu",
        "cuda",
        "cuda",
    ]


def test_engines_of_other_weights_are_never_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = []
    for seed in (0, 1):
        write_handmade_bundle(tmp_path / str(seed), seed=seed)
        opened = load_bundle(tmp_path / str(seed))
        folders += [engine_cache_folder(*graph_hashes(opened, "backbone")) for _ in range(2)]
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].parent == tmp_path / "cache" / "rfedge" / "onnxruntime-tensorrt"
    assert engine_cache_folder("a" * 64, {"w": "b" * 64}) != engine_cache_folder("a" * 64, {"w": "c" * 64})
    assert provider_options("TensorrtExecutionProvider") == {}
    options = provider_options("TensorrtExecutionProvider", folders[0])
    assert options["trt_engine_cache_path"] == str(folders[0])


def test_tensors_on_a_device_are_made_once_for_a_shape(bundle: tuple[Path, Oracle]) -> None:
    """On the CPU as the device: the same calls, and the same numbers as inputs bound where they lie."""
    path, oracle = bundle
    opened = load_bundle(path)
    runner = OrtRunner("backbone", opened.path("backbone"), opened.contract.backbone, RuntimeSettings(threads=1))
    rng = np.random.default_rng(0)
    with runner:
        runner._on_device = device = DeviceInputs(runner._binding, "cpu")
        places = []
        for num_tokens in (5, 5, 9, 5):
            inputs = opened.contract.backbone.sample_inputs(rng, dynamic_size=num_tokens)
            inputs["image_static"] = inputs["image_static"][:, ::-1]
            assert_same_in_fp32(runner.infer(inputs)["feature"], oracle.backbone(**inputs), oracle.backbone_terms)
            places.append({name: value.data_ptr() for name, value in device._values.items()})
    assert places[0] == places[1]
    assert {name for name in places[0] if places[1][name] != places[2][name]} <= {"text_embedding", "text_mask"}
    assert places[2]["image_static"] == places[0]["image_static"]


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino"])
def test_another_provider_acts_like_the_cpu(bundle: tuple[Path, Oracle], name: str) -> None:
    providers = parse_provider(name)
    if providers[0] not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {providers[0]}")
    with (
        EdgePolicy.load(bundle[0], settings=RuntimeSettings(threads=1, providers=providers)) as ours,
        EdgePolicy.load(bundle[0], settings=RuntimeSettings(threads=1)) as reference,
    ):
        states = [ours.initial_state(), reference.initial_state()]
        for step, frame in enumerate(frames(6)):
            instruction = INSTRUCTIONS[step % len(INSTRUCTIONS)]
            results = [p.infer(frame, instruction, s) for p, s in zip((ours, reference), states, strict=True)]
            states = [result.state for result in results]
            np.testing.assert_allclose(results[0].actions, results[1].actions, atol=1e-4)
