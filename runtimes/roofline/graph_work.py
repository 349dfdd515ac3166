"""Count the MatMuls of exported graphs from their nodes and shapes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Final

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.block_names import UNNAMED, block_of_scopes
from rfedge.config import PolicyConfig
from rfedge.runtimes.roofline.graph_file import Graph, Node, Tensor, element_bits, read_graph
from rfedge.runtimes.roofline.work import Arithmetic, MatMul, PolicyWork, Stage, stage_of_block

# Operators that hand on a weight without computing with it.
_HANDS_ON: Final = frozenset(
    {"Cast", "Concat", "DequantizeLinear", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
_MATMULS: Final = frozenset({"Conv", "Gemm", "LSTM", "MatMul", "MatMulInteger", "MatMulNBits"})
# Costly operators that our exporter does not write: named in the report, so that a wrong sum does not pass for a right one.
_UNCOUNTABLE: Final = frozenset(
    {"Attention", "ConvInteger", "ConvTranspose", "Einsum", "GRU", "GroupQueryAttention", "MultiHeadAttention", "QGemm"}
    | {"QLinearConv", "QLinearMatMul", "RNN"}
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
    """Count one policy call of a bundle, its head in the steady state, over `text_tokens` or else the longest instruction.

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


class GraphCount:
    """Work of one graph: its MatMuls, operators, norms and biases, and operators whose cost could not be counted.

    Its dynamic axes, tokens of the text or steps of the head, have `dynamic_size`; `block` names everything in place of the
    exporter's names.
    """

    def __init__(self, graph: Graph, *, dynamic_size: int = 1, block: str | None = None) -> None:
        self.graph = graph
        self.matmuls: list[MatMul] = []
        self.operators: Counter[Stage] = Counter()
        self.uncounted: list[str] = []
        self._dynamic_size = dynamic_size
        self._block = block
        self._vectors: dict[str, list[Tensor]] = defaultdict(list)
        self._producers = {name: node for node in graph.nodes for name in node.outputs}
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self._readers[name].append(node)
        self._varying = set(graph.inputs)
        self._blocks: dict[str, str] = {}
        self._count()

    def _count(self) -> None:
        """Walk the nodes once; MatMuls of constants alone are folded when the graph is loaded and cost nothing."""
        for node in self.graph.nodes:
            if self._varying.isdisjoint(node.inputs):
                continue
            self._varying.update(node.outputs)
            block = self._block or self._block_of(node)
            self._blocks.update(dict.fromkeys(node.outputs, block))
            self.operators[stage_of_block(block)] += node.op not in _LAUNCHES_NOTHING
            if node.op in _MATMULS:
                found = self._matmuls_of(node, block)
                if not found:
                    self.uncounted.append(f"{node.op} {node.name or node.outputs[0]}")
                self.matmuls += found
            elif node.op in _UNCOUNTABLE:
                self.uncounted.append(f"{node.op} {node.name or node.outputs[0]}")
            self._collect_vectors(node, block)

    def _block_of(self, node: Node) -> str:
        """Return the block a node came from; one that a graph pass added belongs to the block whose result it reads."""
        block = block_of_scopes(node.scopes)
        if block == UNNAMED:
            read = [self._blocks[name] for name in node.inputs if name in self._blocks]
            return read[0] if read else UNNAMED
        return block

    def vector_sums(self) -> dict[str, tuple[int, int]]:
        return {
            block: (sum(_elements(tensor) for tensor in tensors), sum(_bytes(tensor) for tensor in tensors))
            for block, tensors in self._vectors.items()
        }

    def stored_bytes(self) -> int:
        return sum(_bytes(tensor) for tensor in self.graph.weights.values())

    def _collect_vectors(self, node: Node, block: str) -> None:
        """Note norms and biases: one-dimensional float constants, counted at every reader."""
        if block == UNNAMED or block.startswith("preprocess"):
            return
        if node.op == "LSTM":
            candidates = node.inputs[3:4]
        elif node.op in ("Conv", "Gemm", "LayerNormalization", "Add", "Mul"):
            first = {"Conv": 2, "Gemm": 2, "LayerNormalization": 1}.get(node.op, 0)
            candidates = node.inputs[first:]
        else:
            return
        for name in candidates:
            if not name or name in self._varying:
                continue
            tensor = self._tensor(name)
            axes = tensor.shape or ()
            is_vector = sum(size != 1 for size in axes) == 1 and (len(axes) == 1 or node.op == "LSTM")
            is_one_bias = node.op == "Add" and axes == (1,)
            if (is_vector or is_one_bias) and tensor.dtype in _FLOATS:
                self._vectors[block].append(tensor)

    def _tensor(self, name: str) -> Tensor:
        """Return a tensor with its dynamic axes filled in; Q and DQ, which quantizers add without shapes, as their input."""
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.shape is None:
            node = self._producers.get(name)
            if node is None or node.op not in ("QuantizeLinear", "DequantizeLinear"):
                return tensor or Tensor("", None)
            source = self._tensor(node.inputs[0])
            if node.op == "DequantizeLinear":
                return Tensor(self._tensor(node.inputs[1]).dtype, source.shape)
            zero_point = self._tensor(node.inputs[2]).dtype if len(node.inputs) > 2 else "uint8"
            return Tensor(zero_point, source.shape)
        filled = tuple(self._dynamic_size if isinstance(size, str) else size for size in tensor.shape)
        return Tensor(tensor.dtype, filled)

    def _read(self, name: str) -> Tensor:
        """Return an activation as it is read: before its DequantizeLinear, which an integer kernel swallows."""
        node = self._producers.get(name)
        return self._tensor(node.inputs[0] if node is not None and node.op == "DequantizeLinear" else name)

    def _stored_weight(self, name: str) -> tuple[str, int] | None:
        """Return (stored element type, bytes of scales) of a constant, or None when the constant was computed."""
        scale_bytes = 0
        while name not in self.graph.weights:
            node = self._producers.get(name)
            if node is None or node.op not in _HANDS_ON:
                return None
            if node.op == "DequantizeLinear":
                scale_bytes += _bytes(self._tensor(node.inputs[1]))
            name = node.inputs[0]
        return self.graph.weights[name].dtype, scale_bytes

    def _matmuls_of(self, node: Node, block: str) -> list[MatMul]:
        """Return what a node computes, or nothing when the file does not tell its shapes."""
        if node.op == "LSTM":
            return self._lstm(node, block)
        matmul = self._packed_matmul(node, block) if node.op == "MatMulNBits" else self._plain_matmul(node, block)
        return [] if matmul is None else [matmul]

    def _plain_matmul(self, node: Node, block: str) -> MatMul | None:
        left, right = (self._tensor(name) for name in node.inputs[:2])
        output = self._tensor(node.outputs[0])
        macs = _conv_macs(right, output) if node.op == "Conv" else _matmul_macs(node, left, right)
        if macs is None:
            return None
        parameters = weight_bytes = activation_bytes = 0
        stored_types: list[str] = []
        for name in node.inputs[:2]:
            tensor = self._tensor(name)
            # A stack of matrices is no weight but a result that was computed beforehand, such as the latents' queries.
            is_stack = node.op != "Conv" and sum(size != 1 for size in tensor.shape or ()) > 2
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

    def _logit_bytes(self, node: Node, left: Tensor, output: Tensor) -> int:
        """Return the size of what lies between attention's two MatMuls and is read or written by this one."""
        before = self._producers.get(node.inputs[0])
        if before is not None and before.op == "Softmax":
            return _bytes(left)
        readers = self._readers[node.outputs[0]]
        while len(readers) == 1 and readers[0].op in _BEFORE_SOFTMAX:
            readers = self._readers[readers[0].outputs[0]]
        return _bytes(output) if len(readers) == 1 and readers[0].op == "Softmax" else 0

    def _arithmetic(self, node: Node, output: Tensor) -> Arithmetic:
        if node.op == "MatMulInteger":
            return "int8"
        factors = [self._read(name).dtype for name in node.inputs[:2]]
        if all(dtype in ("int8", "uint8") for dtype in factors):
            return "int8"
        return _FLOATS.get(output.dtype, "fp32")

    def _packed_matmul(self, node: Node, block: str) -> MatMul | None:
        """com.microsoft.MatMulNBits: weights packed in blocks of a row, each with a scale."""
        inner, columns, bits = (node.integers.get(key, 0) for key in ("K", "N", "bits"))
        left, output = self._tensor(node.inputs[0]), self._tensor(node.outputs[0])
        if left.shape is None or not inner or not columns:
            return None
        rows = _elements(left) // inner
        arithmetic = _FLOATS.get(left.dtype, "fp32")
        return MatMul(
            block=block,
            macs=rows * inner * columns,
            arithmetic=arithmetic,
            label=f"int{bits or 4}-weight",
            parameters=inner * columns,
            weight_bytes=sum(_bytes(self._tensor(name)) for name in node.inputs[1:] if name),
            activation_bytes=_bytes(left) + rows * columns * element_bits(output.dtype or left.dtype) // 8,
        )

    def _lstm(self, node: Node, block: str) -> list[MatMul]:
        """One MatMul with the input and one with the state."""
        x, w, r = (self._tensor(name) for name in node.inputs[:3])
        steps = x.shape[0] if x.shape and isinstance(x.shape[0], int) and x.shape[0] > 0 else self._dynamic_size
        state = self._tensor(node.inputs[5]).shape
        batch = state[1] if state is not None and isinstance(state[1], int) else 1
        matmuls = []
        for name, weight in ((node.inputs[1], w), (node.inputs[2], r)):
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


def _elements(tensor: Tensor) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in tensor.shape or (0,))


def _bytes(tensor: Tensor) -> int:
    return _elements(tensor) * element_bits(tensor.dtype) // 8


def _inner_size(node: Node, left: Tensor, right: Tensor) -> int:
    assert left.shape is not None
    axis = -2 if node.op == "Gemm" and node.integers.get("transA") else -1
    size = left.shape[axis]
    return size if isinstance(size, int) else 1


def _matmul_macs(node: Node, left: Tensor, right: Tensor) -> int | None:
    shapes = left.shape, right.shape
    if any(shape is None or len(shape) < 2 or not all(isinstance(size, int) for size in shape) for shape in shapes):
        return None
    assert left.shape is not None
    assert right.shape is not None
    inner = _inner_size(node, left, right)
    rows = left.shape[-1] if node.op == "Gemm" and node.integers.get("transA") else left.shape[-2]
    columns = right.shape[-2] if node.op == "Gemm" and node.integers.get("transB") else right.shape[-1]
    length = max(len(left.shape), len(right.shape))
    padded = [(1,) * (length - len(shape)) + tuple(shape) for shape in (left.shape, right.shape)]
    batch = math.prod(max(int(a or 1), int(b or 1)) for a, b in zip(padded[0][:-2], padded[1][:-2], strict=True))
    return batch * int(rows or 0) * inner * int(columns or 0)


def _conv_macs(weight: Tensor, output: Tensor) -> int | None:
    if weight.shape is None or output.shape is None:
        return None
    return _elements(output) * math.prod(size for size in weight.shape[1:] if isinstance(size, int))


def _label(arithmetic: Arithmetic, stored_types: list[str]) -> str:
    """Name a MatMul by its arithmetic or, where its weight is stored smaller, by that."""
    if arithmetic != "int8":
        for dtype in stored_types:
            if dtype in ("int8", "uint8"):
                return "int8-weight"
            if dtype in ("int4", "uint4"):
                return "int4-weight"
    return arithmetic
