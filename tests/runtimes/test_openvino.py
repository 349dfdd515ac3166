"""The second CPU backend, held to the same contract and the same numbers as onnxruntime."""

from pathlib import Path

import numpy as np
import pytest

from rfedge.errors import ArtifactError, BackendUnavailableError
from rfedge.messages import Observation
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends import registry
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS, Oracle, write_handmade_bundle
from tests.tolerances import assert_same_in_fp32

SETTINGS = RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    pytest.importorskip("openvino", reason="the extra rfedge[openvino] is not installed")
    path = tmp_path_factory.mktemp("openvino") / "bundle"
    return path, write_handmade_bundle(path)


def test_it_acts_like_onnxruntime(bundle: tuple[Path, Oracle]) -> None:
    rng = np.random.default_rng(0)
    with (
        EdgePolicy.load(bundle[0], backend="openvino", settings=SETTINGS) as ours,
        EdgePolicy.load(bundle[0], settings=SETTINGS) as reference,
    ):
        settings = ours.parts.backbone.effective_settings()
        assert settings == {"providers": "openvino CPU", "threads": "1", "precision_hint": "f32"}
        states = [ours.initial_state(), reference.initial_state()]
        for instruction in (*INSTRUCTIONS, INSTRUCTIONS[0]):  # texts of several lengths, so the shapes change
            static = rng.integers(0, 256, (200, 200, 3), np.uint8)
            gripper = rng.integers(0, 256, (84, 84, 3), np.uint8)
            results = [
                policy.infer(Observation(static, gripper), instruction, state)
                for policy, state in zip((ours, reference), states, strict=True)
            ]
            states = [result.state for result in results]
            assert_same_in_fp32(results[0].actions, results[1].actions, bundle[1].terms)


def test_results_are_the_callers_own(bundle: tuple[Path, Oracle]) -> None:
    path, oracle = bundle
    with EdgePolicy.load(path, backend="openvino", settings=SETTINGS) as policy:
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0))
        first = policy.parts.backbone.infer(inputs)["feature"]
        assert_same_in_fp32(first, oracle.backbone(**inputs), oracle.backbone_terms)
        before = first.copy()
        inputs["image_static"] = 255 - inputs["image_static"]
        policy.parts.backbone.infer(inputs)
        np.testing.assert_array_equal(first, before)


def test_a_graph_it_cannot_compile_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra rfedge[openvino] is not installed")
    write_handmade_bundle(tmp_path / "b")
    graph = tmp_path / "b" / "backbone.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))  # of the right size, which is checked even without `verify`
    with raises(ArtifactError, "graph backbone.onnx", got="OpenVINO error ...", remedy="Use the onnxruntime backend..."):
        EdgePolicy.load(tmp_path / "b", backend="openvino", settings=RuntimeSettings(threads=1, verify=False))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry._BACKENDS, "openvino", ("no_openvino", "open_bundle", registry._BACKENDS["openvino"][2]))
    with raises(BackendUnavailableError, remedy="Install it: pip install openvino."):
        registry.open_parts("openvino", tmp_path, SETTINGS)
