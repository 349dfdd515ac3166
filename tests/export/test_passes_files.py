"""Graphs that the passes read and write: weights beside the graph, in place, and what is no graph."""

from pathlib import Path

import onnx_ir as ir
import pytest

from rfedge.errors import ArtifactError
from rfedge.export.passes.graph_files import file_bytes, read_graph, write_graph
from rfedge.export.passes.standard import apply_passes, standard_passes
from tests.errors import raises
from tests.export.float_graphs import TracedPolicy, run, traced_policy
from tests.tolerances import assert_same_in_fp32, backbone_terms


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TracedPolicy:
    return traced_policy(tmp_path_factory)


def test_large_weights_stay_in_a_file_that_is_replaced_in_place(tiny: TracedPolicy, tmp_path: Path) -> None:
    path, inputs = tiny.backbone, tiny.inputs
    target = tmp_path / "backbone.onnx"
    files = write_graph(read_graph(path), target, inline_limit_bytes=0)
    assert files == [target, tmp_path / "backbone.onnx.data"]
    model = read_graph(target)
    large = [value.const_value for value in model.graph.initializers.values() if value.const_value.nbytes > 2048]
    assert large
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
    reference = run(target, inputs)[0]
    for graph_pass in standard_passes():
        graph_pass(model)
    seen = []
    write_graph(model, target, inline_limit_bytes=0, on_weight=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(model.graph.initializers),) * 2
    assert_same_in_fp32(run(target, inputs)[0], reference, backbone_terms(tiny.config))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["backbone.onnx", "backbone.onnx.data"]
    files = apply_passes(target, target)  # small enough for one file now
    assert files == [target]
    assert [item.name for item in tmp_path.iterdir()] == ["backbone.onnx"]
    assert file_bytes(target) == target.stat().st_size
    assert_same_in_fp32(run(target, inputs)[0], reference, backbone_terms(tiny.config))


def test_what_is_no_graph_is_named(tmp_path: Path) -> None:
    with raises(ArtifactError, "graph ...absent.onnx", got="...No such file...", expected="an ONNX file"):
        apply_passes(tmp_path / "absent.onnx", tmp_path / "target.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf")
    with raises(ArtifactError, "graph ...text.onnx", expected="an ONNX file"):
        apply_passes(tmp_path / "text.onnx", tmp_path / "target.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["text.onnx"]
