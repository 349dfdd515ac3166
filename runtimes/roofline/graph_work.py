"""Count the MatMuls of exported graphs from their nodes and shapes, and what TensorRT's engines make of them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.block_names import SCOPES_KEY, UNNAMED, block_of_scopes
from rfedge.bundle.engines import engine_folders, read_engine_folder
from rfedge.bundle.stages import graph_of_block
from rfedge.config import PolicyConfig
from rfedge.errors import ArtifactError
from rfedge.runtimes.roofline.work import Arithmetic, MatMul, PolicyWork, Stage, stage_of_block

if TYPE_CHECKING:  # imported where it is needed: commands that run a policy do without it
    from onnx import GraphProto, NodeProto, ValueInfoProto

# Operators that hand on a weight without computing with it.
_HANDS_ON: Final = frozenset(
    {"Cast", "Concat", "DequantizeLinear", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
_MATMULS: Final = frozenset({"Conv", "Gemm", "LSTM", "MatMul", "MatMulInteger"})
# Costly operators that our exporter does not write: named in the report, so that a wrong sum does not pass for a right one.
_UNCOUNTABLE: Final = frozenset(
    {"Attention", "ConvInteger", "ConvTranspose", "Einsum", "GRU", "GroupQueryAttention", "MatMulNBits"}
    | {"MultiHeadAttention", "QGemm", "QLinearConv", "QLinearMatMul", "RNN"}
)
# Operators that a runtime launches nothing for: views, and Q and DQ, which kernels swallow.
_LAUNCHES_NOTHING: Final = frozenset(
    {"Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
)
_BEFORE_SOFTMAX: Final = ("Add", "Cast", "Div", "Mul", "Where")
_FLOATS: Final[dict[str, Arithmetic]] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def head_steps(config: PolicyConfig) -> int:
    """Return the features behind one action once the window is full, as far as the head does not carry a state."""
    if config.head.kind == "gpt" or (config.head.kind == "lstm" and config.time_keeping == "window"):
        return config.window
    return 1


def bundle_work(bundle: Bundle, *, text_tokens: int | None = None) -> PolicyWork:
    """Count a policy call of a bundle, its head in the steady state, over `text_tokens` or else the longest instruction.

    Raises ArtifactError if a graph cannot be read.
    """
    steps = head_steps(bundle.policy)
    matmuls: list[MatMul] = []
    vectors: dict[str, tuple[int, int]] = {}
    operators: Counter[Stage] = Counter()
    uncounted: list[str] = []
    graph_bytes = 0
    text = text_tokens or bundle.policy.decoder.text_length
    for name in bundle.contract.graphs:
        size, block = (steps, "head") if name == "head" else (text, None)
        counter = GraphCount(read_graph(bundle.path(name)), dynamic_size=size, block=block)
        matmuls += counter.matmuls
        vectors |= counter.vector_sums()
        operators.update(counter.operators)
        uncounted += counter.uncounted
        graph_bytes += counter.stored_bytes()
    counted = sum(matmul.weight_bytes for matmul in matmuls) + sum(size for _, size in vectors.values())
    sizes = {artifact.role: artifact.size_bytes for artifact in bundle.manifest.artifacts}
    return PolicyWork(
        matmuls=tuple(matmuls),
        vectors=vectors,
        head_steps=steps,
        embedding_bytes=sizes.get("embedding", 0) or sizes.get("instructions", 0),
        table_bytes=max(graph_bytes - counted, 0),
        operators=operators,
        uncounted=tuple(uncounted),
    )


class Tensor(NamedTuple):
    """Known facts of a tensor; an axis is its size, the name of a dynamic one, or None where the file does not say."""

    dtype: str  # "float32", ...; "" when unknown
    shape: tuple[int | str | None, ...] | None


def read_graph(path: Path) -> GraphProto:
    """Return the graph in an ONNX file, without the weights beside it; ArtifactError where it is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError

    got, graph = "no graph", onnx.GraphProto()
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        got = str(error)
    if not graph.node:
        raise ArtifactError(f"graph {path.name}", got=got, expected="an ONNX file", remedy="Export the bundle again.")
    return graph


def traced_block(node: NodeProto) -> str:
    """Return the PyTorch block that a node was traced from, or `UNNAMED`."""
    return block_of_scopes(next((one.value for one in node.metadata_props if one.key == SCOPES_KEY), None))


class GraphCount:
    """Work of one graph: its MatMuls, operators, norms and biases, and operators whose cost could not be counted.

    Its dynamic axes, tokens of the text or steps of the head, have `dynamic_size`; `block` names everything in place of the
    exporter's names.
    """

    def __init__(self, graph: GraphProto, *, dynamic_size: int = 1, block: str | None = None) -> None:
        self.matmuls: list[MatMul] = []
        self.operators: Counter[Stage] = Counter()
        self.uncounted: list[str] = []
        self._dynamic_size = dynamic_size
        self._block = block
        self._vectors: dict[str, list[Tensor]] = defaultdict(list)
        self._weights = {one.name: Tensor(_dtype(one.data_type), tuple(one.dims)) for one in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        self._tensors = {value.name: _tensor(value) for value in values} | self._weights
        self._producers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._varying = {value.name for value in graph.input} - self._weights.keys()
        self._blocks: dict[str, str] = {}
        for node in graph.node:  # in topological order, as ONNX demands
            # MatMuls of constants alone are folded when the graph is loaded and cost nothing.
            if not self._varying.isdisjoint(node.input):
                self._varying.update(node.output)
                self._count(node, self._block or self._block_of(node))

    def _count(self, node: NodeProto, block: str) -> None:
        self._blocks.update(dict.fromkeys(node.output, block))
        self.operators[stage_of_block(block)] += node.op_type not in _LAUNCHES_NOTHING
        found = self._matmuls_of(node, block)
        if not found and node.op_type in _MATMULS | _UNCOUNTABLE:
            self.uncounted.append(f"{node.op_type} {node.name or node.output[0]}")
        self.matmuls += found
        self._collect_vectors(node, block)

    def _block_of(self, node: NodeProto) -> str:
        """Return the block a node came from; one that a graph pass added belongs to the block whose result it reads."""
        block = traced_block(node)
        if block == UNNAMED:
            read = [self._blocks[name] for name in node.input if name in self._blocks]
            return read[0] if read else UNNAMED
        return block

    def vector_sums(self) -> dict[str, tuple[int, int]]:
        return {
            block: (sum(_elements(tensor) for tensor in tensors), sum(_bytes(tensor) for tensor in tensors))
            for block, tensors in self._vectors.items()
        }

    def stored_bytes(self) -> int:
        return sum(_bytes(tensor) for tensor in self._weights.values())

    def _collect_vectors(self, node: NodeProto, block: str) -> None:
        """Note norms and biases: one-dimensional float constants, counted at every reader."""
        if block == UNNAMED or block.startswith("preprocess"):
            return
        if node.op_type == "LSTM":
            candidates = node.input[3:4]
        elif node.op_type in ("Conv", "Gemm", "LayerNormalization", "Add", "Mul"):
            first = {"Conv": 2, "Gemm": 2, "LayerNormalization": 1}.get(node.op_type, 0)
            candidates = node.input[first:]
        else:
            return
        for name in candidates:
            if not name or name in self._varying:
                continue
            tensor = self._tensor(name)
            axes = tensor.shape or ()
            is_vector = sum(size != 1 for size in axes) == 1 and (len(axes) == 1 or node.op_type == "LSTM")
            is_one_bias = node.op_type == "Add" and axes == (1,)
            if (is_vector or is_one_bias) and tensor.dtype in _FLOATS:
                self._vectors[block].append(tensor)

    def _tensor(self, name: str) -> Tensor:
        """Return a tensor with its dynamic axes filled in; Q and DQ, which quantizers add without shapes, as their input."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.shape is None:
            node = self._producers.get(name)
            if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                return tensor or Tensor("", None)
            source = self._tensor(node.input[0])
            if node.op_type == "DequantizeLinear":
                return Tensor(self._tensor(node.input[1]).dtype, source.shape)
            zero_point = self._tensor(node.input[2]).dtype if len(node.input) > 2 else "uint8"
            return Tensor(zero_point, source.shape)
        filled = tuple(self._dynamic_size if isinstance(size, str) else size for size in tensor.shape)
        return Tensor(tensor.dtype, filled)

    def _read(self, name: str) -> Tensor:
        """Return an activation as it is read: before its DequantizeLinear, which an integer kernel swallows."""
        node = self._producers.get(name)
        return self._tensor(node.input[0] if node is not None and node.op_type == "DequantizeLinear" else name)

    def _stored_weight(self, name: str) -> tuple[str, int] | None:
        """Return (stored element type, bytes of scales) of a constant, or None when the constant was computed."""
        scale_bytes = 0
        while name not in self._weights:
            node = self._producers.get(name)
            if node is None or node.op_type not in _HANDS_ON:
                return None
            if node.op_type == "DequantizeLinear":
                scale_bytes += _bytes(self._tensor(node.input[1]))
            name = node.input[0]
        return self._weights[name].dtype, scale_bytes

    def _matmuls_of(self, node: NodeProto, block: str) -> list[MatMul]:
        """Return what a node multiplies; nothing when the file does not tell its shapes."""
        if node.op_type not in _MATMULS:
            return []
        if node.op_type == "LSTM":
            return self._lstm(node, block)
        matmul = self._plain_matmul(node, block)
        return [] if matmul is None else [matmul]

    def _plain_matmul(self, node: NodeProto, block: str) -> MatMul | None:
        left, right = (self._tensor(name) for name in node.input[:2])
        output = self._tensor(node.output[0])
        macs = None if node.op_type == "Conv" else _matmul_macs(node, left, right)
        if node.op_type == "Conv" and right.shape is not None and output.shape is not None:
            macs = _elements(output) * math.prod(size for size in right.shape[1:] if isinstance(size, int))
        if macs is None:
            return None
        parameters = weight_bytes = activation_bytes = 0
        stored_types: list[str] = []
        for name in node.input[:2]:
            tensor = self._tensor(name)
            # A stack of matrices is no weight but a result that was computed beforehand, such as the latents' queries.
            is_stack = node.op_type != "Conv" and sum(size != 1 for size in tensor.shape or ()) > 2
            stored = None if name in self._varying or is_stack else self._stored_weight(name)
            if stored is None:
                read = self._read(name)
                activation_bytes += _bytes(Tensor(read.dtype or "float32", tensor.shape))
                continue
            stored_types.append(stored[0])
            parameters += _elements(tensor)
            weight_bytes += _bytes(Tensor(stored[0], tensor.shape)) + stored[1]
        out_elements = _elements(output) if output.shape is not None else macs // max(_inner_size(node, left, right), 1)
        activation_bytes += out_elements * element_bits(output.dtype) // 8
        arithmetic = self._arithmetic(node, output)
        return MatMul(
            block=block,
            macs=macs,
            arithmetic=arithmetic,
            label=_label(arithmetic, stored_types),
            parameters=0 if stage_of_block(block) == "preprocess" else parameters,
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            logit_bytes=0 if stored_types else self._logit_bytes(node, left, output),
        )

    def _logit_bytes(self, node: NodeProto, left: Tensor, output: Tensor) -> int:
        """Return the size of what lies between attention's two MatMuls and is read or written by this one."""
        before = self._producers.get(node.input[0])
        if before is not None and before.op_type == "Softmax":
            return _bytes(left)
        readers = self._readers[node.output[0]]
        while len(readers) == 1 and readers[0].op_type in _BEFORE_SOFTMAX:
            readers = self._readers[readers[0].output[0]]
        return _bytes(output) if len(readers) == 1 and readers[0].op_type == "Softmax" else 0

    def _arithmetic(self, node: NodeProto, output: Tensor) -> Arithmetic:
        if node.op_type == "MatMulInteger":
            return "int8"
        factors = [self._read(name).dtype for name in node.input[:2]]
        if all(dtype in ("int8", "uint8") for dtype in factors):
            return "int8"
        return _FLOATS.get(output.dtype, "fp32")

    def _lstm(self, node: NodeProto, block: str) -> list[MatMul]:
        """One MatMul with the input and one with the state."""
        x, w, r = (self._tensor(name) for name in node.input[:3])
        steps = x.shape[0] if x.shape and isinstance(x.shape[0], int) and x.shape[0] > 0 else self._dynamic_size
        state = self._tensor(node.input[5]).shape
        batch = state[1] if state is not None and isinstance(state[1], int) else 1
        matmuls = []
        for name, weight in ((node.input[1], w), (node.input[2], r)):
            stored = self._stored_weight(name)
            if stored is None or weight.shape is None or not all(isinstance(size, int) for size in weight.shape):
                return []
            arithmetic = _FLOATS.get(weight.dtype, "fp32")
            rows, width = _elements(weight) // int(weight.shape[-1] or 1), int(weight.shape[-1] or 0)
            matmuls.append(
                MatMul(
                    block=block,
                    macs=steps * batch * rows * width,
                    arithmetic=arithmetic,
                    label=_label(arithmetic, [stored[0]]),
                    parameters=rows * width,
                    weight_bytes=_bytes(Tensor(stored[0], weight.shape)) + stored[1],
                    activation_bytes=steps * batch * width * element_bits(weight.dtype) // 8,
                )
            )
        return matmuls


def _integer(node: NodeProto, name: str) -> int:
    return next((one.i for one in node.attribute if one.name == name), 0)


def _tensor(value: ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type  # sequences and maps have no one shape
    axes = [getattr(axis, axis.WhichOneof("value") or "", None) for axis in tensor.shape.dim]
    return Tensor(_dtype(tensor.elem_type), tuple(axes) if tensor.HasField("shape") else None)


def _dtype(element_type: int) -> str:
    from onnx.helper import tensor_dtype_to_np_dtype

    return str(tensor_dtype_to_np_dtype(element_type)) if element_type else ""


def element_bits(dtype: str) -> int:
    """Return the bits of an element; of an unknown type, 32."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8 if dtype == "bool" else 32


def _elements(tensor: Tensor) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in tensor.shape or (0,))


def _bytes(tensor: Tensor) -> int:
    return _elements(tensor) * element_bits(tensor.dtype) // 8


def _inner_size(node: NodeProto, left: Tensor, right: Tensor) -> int:
    assert left.shape is not None
    axis = -2 if node.op_type == "Gemm" and _integer(node, "transA") else -1
    size = left.shape[axis]
    return size if isinstance(size, int) else 1


def _matmul_macs(node: NodeProto, left: Tensor, right: Tensor) -> int | None:
    shapes = left.shape, right.shape
    if any(shape is None or len(shape) < 2 or not all(isinstance(size, int) for size in shape) for shape in shapes):
        return None
    assert left.shape is not None
    assert right.shape is not None
    inner = _inner_size(node, left, right)
    rows = left.shape[-1] if node.op_type == "Gemm" and _integer(node, "transA") else left.shape[-2]
    columns = right.shape[-2] if node.op_type == "Gemm" and _integer(node, "transB") else right.shape[-1]
    length = max(len(left.shape), len(right.shape))
    padded = [(1,) * (length - len(shape)) + tuple(shape) for shape in (left.shape, right.shape)]
    batch = math.prod(max(int(a or 1), int(b or 1)) for a, b in zip(padded[0][:-2], padded[1][:-2], strict=True))
    return batch * int(rows or 0) * inner * int(columns or 0)


def _label(arithmetic: Arithmetic, stored_types: list[str]) -> str:
    """Name a MatMul by its arithmetic or, where its weight is stored smaller, by that."""
    if arithmetic != "int8":
        for dtype in stored_types:
            if dtype in ("int8", "uint8"):
                return "int8-weight"
            if dtype in ("int4", "uint4"):
                return "int4-weight"
    return arithmetic


@dataclass(frozen=True, slots=True)
class EngineShares:
    """Findings of the audits of one target's engines, all graphs together."""

    folder: str  # name of the target's folder
    graphs: tuple[str, ...]  # those that are built
    layers: dict[str, int]  # precision -> layers; each is a launch
    # num_attention, num_fused: attentions, and those that are one kernel
    num_attention: int
    num_fused: int

    @property
    def num_launches(self) -> int:
        return sum(self.layers.values())


def engine_shares(bundle: Bundle) -> tuple[EngineShares, ...]:
    """Return the audits of every target that has engines; those that an older rfedge built hold none."""
    found = []
    for folder in engine_folders(bundle):
        try:
            stages = read_engine_folder(folder).stages
        except ArtifactError:
            continue
        layers: dict[str, int] = {}
        for record in stages.values():
            for name, count in record.layers.items():
                layers[name] = layers.get(name, 0) + count
        if layers:
            attention, fused = (sum(getattr(record, name) for record in stages.values()) for name in _ATTENTION)
            found.append(EngineShares(folder.name, tuple(stages), layers, attention, fused))
    return tuple(found)


_ATTENTION = ("num_attention", "num_fused")


def engine_work(work: PolicyWork, bundle: Bundle) -> PolicyWork:
    """Return `work` with the floats of the engines and, where audits tell, their launches.

    Attention counts as fused in fp16 unless an audit found one that is not. Results of int8 MatMuls count as the graph has
    them, in fp32: up to 2 bytes a number too much.
    """
    audits = engine_shares(bundle)
    graph_of = {matmul.stage: graph_of_block(bundle.contract, matmul.block) for matmul in work.matmuls}
    if audits:  # launches of engines that are built, spread over their stages as the graphs' operators are
        built = {stage: count for stage, count in work.operators.items() if graph_of.get(stage) in audits[0].graphs}
        factor = audits[0].num_launches / max(sum(built.values()), 1)
        launches = {stage: round(count * factor) for stage, count in built.items()}
        work = replace(work, operators={**work.operators, **launches})
    record = bundle.manifest.tensorrt
    if record is None:
        return work
    halves = {name for name, form in record.graphs.items() if form.floats == "fp16"}
    is_fused = all(shares.num_fused == shares.num_attention for shares in audits)

    def in_half(matmul: MatMul) -> MatMul:
        if matmul.stage == "preprocess" or matmul.arithmetic != "fp32":
            return matmul
        if graph_of_block(bundle.contract, matmul.block) not in halves:
            return matmul
        kept = matmul.logit_bytes if is_fused else 0
        is_wide = matmul.parameters > 0 and matmul.weight_bytes == 4 * matmul.parameters
        return replace(
            matmul,
            arithmetic="fp16",
            label="fp16" if matmul.label == "fp32" else matmul.label,
            weight_bytes=matmul.weight_bytes // 2 if is_wide else matmul.weight_bytes,
            activation_bytes=(matmul.activation_bytes - kept) // 2,
            logit_bytes=(matmul.logit_bytes - kept) // 2,
        )

    return replace(work, matmuls=tuple(map(in_half, work.matmuls)))
