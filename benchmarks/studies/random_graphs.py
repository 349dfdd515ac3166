"""Graphs of a full-size backbone in every precision, on random bytes: the exporter's structure without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from rfedge.config import PolicyConfig
from rfedge.contract import policy_contract
from rfedge.export.int8.insert import insert_rounded
from rfedge.export.int8.matmuls import QUERY_ATTENTION, MatMul, as_matmul, quantizable_matmuls
from rfedge.export.int8.rounding import Rounded
from rfedge.export.passes.graph_queries import tensor_shape
from rfedge.export.passes.split_weights import SplitWeights
from rfedge.export.passes.standard import standard_passes
from rfedge.export.precisions.form_matmuls import choose_matmuls
from rfedge.export.precisions.row_int8 import RowMatMul, store_rows
from rfedge.export.precisions.weight_only import RoundedWeights, WeightRounding
from rfedge.export.trace import trace_program
from rfedge.model.meta import pooled_policy

GraphPrecision = Literal["fp32", "fp16", "int8", "int4-weight", "mixed"]
# Of a mixed plan: the vision tower in float, as a search with a tight budget leaves it.
_MIXED_FLOAT: Final = (*QUERY_ATTENTION, "vision")
_LARGE_BYTES: Final = 1 << 16
_STRIDE_BYTES: Final = 4096
_INT8_STEP: Final = np.float32(4 / 127)


def random_backbone(config: PolicyConfig, precision: GraphPrecision, *, seed: int) -> ir.Model:
    """Return the backbone's graph; large weights are not to be read before `use_windows`."""
    policy = pooled_policy(config, seed)
    model = trace_program(policy.backbone, policy_contract(config).backbone).model
    for graph_pass in standard_passes():
        graph_pass(model)
    if precision in ("int8", "mixed"):
        SplitWeights()(model)
        for matmul in quantizable_matmuls(model.graph, None if precision == "int8" else _MIXED_FLOAT):
            _round(model.graph, matmul)
        if precision == "int8":
            queries = [item for item in quantizable_matmuls(model.graph, ()) if item.begins_with_any(QUERY_ATTENTION)]
            store_rows(model.graph, {matmul.name: _random_row(matmul) for matmul in queries})
    elif precision == "int4-weight":
        _store_int4(model)
    return model


def use_windows(model: ir.Model, path: Path, rng: np.random.Generator) -> None:
    """Let large constants of the graph at `path` lie in one file of random bytes, each `_STRIDE_BYTES` further."""
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= _LARGE_BYTES
    ]
    by_type: dict[ir.DataType, list[ir.Value]] = {}
    for value in values:
        assert value.const_value is not None, "chosen above"
        by_type.setdefault(value.const_value.dtype, []).append(value)
    for dtype, group in by_type.items():
        tensors = [value.const_value for value in group]
        size = max(tensor.nbytes for tensor in tensors if tensor is not None) + _STRIDE_BYTES * len(group)
        file = path.with_name(f"{dtype.name.lower()}.data")
        if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            numbers = rng.standard_normal(int(size // dtype.itemsize), np.float32) * np.float32(0.02)
            file.write_bytes(numbers.astype(dtype.numpy()).tobytes())
        else:
            file.write_bytes(rng.bytes(size))
        for place, value in enumerate(group):
            tensor = value.const_value
            assert tensor is not None, "chosen above"
            value.const_value = ir.ExternalTensor(
                file.name,
                place * _STRIDE_BYTES,
                tensor.nbytes,
                dtype,
                shape=ir.Shape(tensor_shape(tensor)),
                name=str(value.name),
                base_dir=path.parent,
            )


def _round(graph: ir.Graph, matmul: MatMul) -> None:
    """Put Q/DQ pairs around a MatMul; its integers are all one, in memory that is let go at once."""
    known = set(graph.initializers)
    insert_rounded(graph, matmul, matmul.source, _ones(matmul), _INT8_STEP, activation_type="int8")
    for name, value in graph.initializers.items():
        levels = value.const_value
        if name not in known and levels is not None and levels.dtype == ir.DataType.INT8 and levels.nbytes >= _LARGE_BYTES:
            shape = tensor_shape(levels)
            value.const_value = ir.LazyTensor(_never, dtype=ir.DataType.INT8, shape=ir.Shape(shape), name=name)


def _ones(matmul: MatMul) -> Rounded:
    """Return levels that are all one, without memory, and the steps that keep the size of activations for random ones."""
    tensor = matmul.weight.const_value
    assert tensor is not None, f"{matmul.name} has a weight"
    rows, columns = tensor_shape(tensor)[:: -1 if matmul.is_transposed else 1]
    return np.broadcast_to(np.int8(1), (rows, columns)), np.full(columns, 1.7 / 127 / rows**0.5, np.float32)


def _random_row(matmul: MatMul) -> RowMatMul:
    levels, steps = _ones(matmul)
    return RowMatMul(levels, steps, np.zeros(len(levels), np.float32), np.zeros(len(steps), np.float32))


def _store_int4(model: ir.Model) -> None:
    graph = model.graph

    def rounding_of(matmul: MatMul) -> WeightRounding:
        bits: Literal[4, 8] = 8 if matmul.begins_with_any(QUERY_ATTENTION) else 4
        return WeightRounding(bits)

    weights = RoundedWeights(graph, rounding_of)
    for node in choose_matmuls(graph, ()).converted:
        matmul = as_matmul(node)
        if rounding_of(matmul).fits(matmul):
            weights.insert(matmul)
    graph.opset_imports[""] = 21
    model.ir_version = max(model.ir_version, 10)


def _never() -> ir.TensorProtocol:
    raise AssertionError("a large constant is read before use_windows")
