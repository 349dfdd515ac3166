"""Precision that an engine really computes in, layer by layer and MatMul by MatMul, and why wherever that is not int8.

The truth comes from the engine: from its inspector where the device is there, else from the builder's description of
the layers it made. The ONNX graph says what was asked for and gives the names. As a second witness the weights inside
the engine are weighed: int8 weights that were turned into floats would weigh four times as much.

In one screen blocks that are alike are one row: "vision.blocks.0 to 23". A user's limit on a share of the layers is here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import onnx
from onnx import TensorProto

from rfedge.errors import ConfigError, did_you_mean
from rfedge.export.precision_audit import QUANTIZED, block_of_node, graph_matmuls
from rfedge.export.tensorrt.builder import BuiltEngine
from rfedge.export.tensorrt.engine_layers import EngineLayer
from rfedge.export.tensorrt.network import ModuleNames
from rfedge.records.record import Record

_NARROW: Final = tuple(QUANTIZED.values())
_SYNCHRONISATION: Final = ("signal", "wait")
_POINTWISE_KINDS: Final = ("kgen", "PointWise", "PointWiseV2", "Reformat", "NoOp")
# What an operator is when it has no weight to quantize; the first that a layer holds names the layer.
_REASONS: Final = (
    ("Softmax", "softmax: float by design"),
    ("LayerNormalization", "LayerNorm: float by design"),
    ("SimplifiedLayerNormalization", "RMSNorm: float by design"),
    ("LSTM", "LSTM: float by design"),
    ("Conv", "convolution without Q/DQ: the patch embedding stays float"),
    ("QuantizeLinear", "rounds a float result to int8 for the next MatMul"),
)


class MatMulAudit(Record):
    """One MatMul with a weight."""

    node: str  # of the ONNX graph
    block: str  # of the PyTorch model
    module: str  # the exact one, such as "vision.blocks.3.mlp_up"
    asked: str  # precision the graph asks for
    computed: str  # precision the engine multiplies in, or "unknown"
    engine_layer: str  # that multiplies
    reason: str  # why it is not int8


class AttentionAudit(Record):
    """One attention: softmax(q k) v."""

    node: str  # its Softmax
    block: str
    fused: bool  # one engine layer holds both MatMuls and the softmax
    engine_layers: tuple[str, ...]  # all that hold some of them


class LayerAudit(Record):
    """One layer of the engine."""

    name: str
    kind: str
    precision: str  # "int8" where it multiplies int8; else the widest float it moves but lone numbers (scales)
    blocks: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    reason: str  # why it is not int8


class StageAudit(Record):
    """All of one engine."""

    source: str  # what the layers were read from
    matmuls: tuple[MatMulAudit, ...]  # all with a weight
    layers: tuple[LayerAudit, ...]  # all that compute; waiting and signalling between streams is left out
    attention: tuple[AttentionAudit, ...] = ()  # every softmax between two MatMuls of activations
    graph_weights_bytes: int
    engine_weights_bytes: int  # 0 where the builder does not say
    plan_bytes: int

    @property
    def layer_precisions(self) -> dict[str, int]:
        return dict(Counter(layer.precision for layer in self.layers).most_common())

    @property
    def precisions(self) -> dict[str, int]:
        """Number of MatMuls per precision they are computed in."""
        return dict(Counter(matmul.computed for matmul in self.matmuls).most_common())

    @property
    def missed(self) -> tuple[MatMulAudit, ...]:
        """MatMuls that the graph asks for in int8 and the engine computes in something else."""
        return tuple(item for item in self.matmuls if item.asked == "int8" and item.computed not in ("int8", "unknown"))

    @property
    def weights_grew(self) -> bool:
        """Whether the engine holds half as much again as the graph's constants: then some were made wider."""
        return self.engine_weights_bytes > 1.5 * self.graph_weights_bytes > 0


def audit_built(model: onnx.ModelProto, built: BuiltEngine, islands: Mapping[str, str] = MappingProxyType({})) -> StageAudit:
    """Join what the graph asks for with what the engine does; without layers, MatMuls are reported as unknown.

    A MatMul counts by the profile that computes it widest. `islands` are nodes that were left in fp32, with the reason.
    """
    names, layers, source = ModuleNames(model), built.layers, built.source
    nodes = {node.name: node for node in model.graph.node}
    holders: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node in layer.onnx_nodes:
            holders.setdefault(node, []).append(layer)
    matmuls = [
        _audit_matmul(node, precision, _widest_profile(holders.get(node.name, []), built.num_profiles), names, source)
        for node, precision in graph_matmuls(model)
    ]
    by_node = {matmul.node: matmul for matmul in matmuls}
    given = _given_reasons(model, islands)
    return StageAudit(
        source=source,
        matmuls=tuple(matmuls),
        layers=tuple(_audit_layer(layer, nodes, by_node, given) for layer in layers if layer.kind not in _SYNCHRONISATION),
        attention=tuple(_audit_attention(model, layers)),
        graph_weights_bytes=sum(built.graph_bytes.values()),
        engine_weights_bytes=built.weights_bytes,
        plan_bytes=memoryview(built.plan).nbytes,
    )


def _widest_profile(holders: list[EngineLayer], num_profiles: int) -> list[EngineLayer]:
    """Return the layers of one profile: the first where none multiplies in a narrow format, else the first of all."""
    if num_profiles == 1 or not holders:
        return holders
    groups: dict[int, list[EngineLayer]] = {}
    for layer in holders:
        groups.setdefault(layer.profile, []).append(layer)
    wide = (
        found
        for found in groups.values()
        if all(_factor_precision(layer) not in _NARROW for layer in _multiplying_layers(found))
    )
    return next(wide, next(iter(groups.values())))


def _multiplying_layers(holders: list[EngineLayer]) -> list[EngineLayer]:
    """A MatMul's bias or dequantization may live in layers of its own: the one that multiplies is no pointwise kernel."""
    return [layer for layer in holders if layer.kind not in _POINTWISE_KINDS] or holders


def _audit_matmul(
    node: onnx.NodeProto, asked: str, holders: list[EngineLayer], names: ModuleNames, source: str
) -> MatMulAudit:
    multiplying = _multiplying_layers(holders)
    first = multiplying[0] if multiplying else None
    layer = next((layer for layer in multiplying if _factor_precision(layer) in _NARROW), first)
    computed = "unknown" if layer is None else _factor_precision(layer)
    block = block_of_node(node)
    if computed == "int8":
        reason = ""
    elif layer is None:
        reason = f"not named by the {source}: folded, or merged into a neighbour"
    elif asked == "int8":
        reason = f"the builder chose {computed} for it: it dequantized the int8 weight beforehand (layer {layer.name})"
    elif asked.endswith("-weight"):
        reason = f"only the weight is quantized in the bundle: {asked}"
    elif block.startswith("preprocess"):
        reason = "camera resize: exact in float"
    elif node.op_type == "Conv":
        reason = f"no Q/DQ in the bundle: convolution of {block}"
    else:
        reason = f"no Q/DQ in the bundle: kept {asked}: {block}"
    return MatMulAudit(
        node=node.name,
        block=block,
        module=names.module(node.name),
        asked=asked,
        computed=computed,
        engine_layer=layer.name if layer is not None else "",
        reason=reason,
    )


def _factor_precision(layer: EngineLayer) -> str:
    """Return what the kernel multiplies in: a narrow format only where both factors reach it in that format."""
    operands = (*layer.inputs, *layer.constants)
    counts = Counter(operand.precision for operand in operands)
    both = next((name for name in _NARROW if counts[name] >= 2), None)
    if both is not None:
        return both
    # One narrow factor is dequantized inside the kernel; scales and alphas are small and always fp32.
    wide = [operand for operand in operands if operand.precision not in _NARROW]
    return max(wide, key=lambda operand: operand.num_elements).precision if wide else "unknown"


def _given_reasons(model: onnx.ModelProto, islands: Mapping[str, str]) -> dict[str, str]:
    """Return node -> why fp32 is right there: it is an island, or it reads an input or writes an output of the graph."""
    graph = model.graph
    border = {value.name for value in (*graph.input, *graph.output) if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    casts = {
        node.name for node in graph.node if node.op_type == "Cast" and not border.isdisjoint([*node.input, *node.output])
    }
    return {**dict.fromkeys(casts, "inputs and outputs of the graph are in fp32"), **islands}


def _audit_attention(model: onnx.ModelProto, layers: list[EngineLayer]) -> Iterator[AttentionAudit]:
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        before = producers.get(softmax.input[0])
        while before is not None and before.op_type in ("Add", "Mul", "Cast", "Where", "Div"):
            before = next((producers[name] for name in before.input if name in producers), None)
        after = readers.get(softmax.output[0], [])
        while len(after) == 1 and after[0].op_type == "Cast":
            after = readers.get(after[0].output[0], [])
        if before is None or before.op_type != "MatMul" or not after or after[0].op_type != "MatMul":
            continue
        parts = {softmax.name, before.name, after[0].name}
        holders = [layer for layer in layers if not parts.isdisjoint(layer.onnx_nodes)]
        yield AttentionAudit(
            node=softmax.name,
            block=block_of_node(softmax),
            fused=any(parts <= set(layer.onnx_nodes) for layer in holders),
            engine_layers=tuple(layer.name for layer in holders),
        )


def _layer_precision(layer: EngineLayer) -> str:
    found = {
        operand.precision
        for operand in (*layer.inputs, *layer.constants, *layer.outputs)
        if operand.num_elements > 1 or not operand.shape
    }
    return next((name for name in ("fp32", "bf16", "fp16", *_NARROW) if name in found), "none")


def _audit_layer(
    layer: EngineLayer, nodes: dict[str, onnx.NodeProto], matmuls: dict[str, MatMulAudit], given: Mapping[str, str]
) -> LayerAudit:
    held = [nodes[name] for name in layer.onnx_nodes if name in nodes]
    multiplied = [matmuls[node.name] for node in held if node.name in matmuls]
    here = [matmul for matmul in multiplied if matmul.engine_layer == layer.name]
    precision = "int8" if any(item.computed == "int8" for item in here) else _layer_precision(layer)
    return LayerAudit(
        name=layer.name,
        kind=layer.kind,
        precision=precision,
        blocks=tuple(dict.fromkeys(block for node in held if (block := block_of_node(node)) != "unnamed")),
        onnx_nodes=layer.onnx_nodes,
        reason="" if precision == "int8" else _layer_reason(layer, held, here, multiplied, given, precision),
    )


def _layer_reason(
    layer: EngineLayer,
    held: list[onnx.NodeProto],
    here: list[MatMulAudit],
    multiplied: list[MatMulAudit],
    given: Mapping[str, str],
    precision: str,
) -> str:
    if precision == "fp32":
        if (reason := next((given[node.name] for node in held if node.name in given), None)) is not None:
            return reason
        if any(operand.precision == "fp16" for operand in (*layer.inputs, *layer.constants, *layer.outputs)) and any(
            node.op_type == "LayerNormalization" for node in held
        ):
            return "LayerNorm in fp16 that the builder split over two kernels: its sums lie between them in fp32"
    if here:
        return here[0].reason
    operators = {node.op_type for node in held}
    if "MatMul" in operators and not multiplied and layer.kind not in _POINTWISE_KINDS:
        return "attention MatMul of two activations (q·k or p·v): it has no weight"
    if operators == {"DequantizeLinear"} or (multiplied and not layer.inputs):
        return f"prepares the weight of {multiplied[0].node}" if multiplied else "dequantizes int8 to float"
    for operator, reason in _REASONS:
        if operator in operators:
            return reason
    if "MatMul" in operators:
        return "moves data for a MatMul: slices, transposes, pads"
    if not held:
        return "made by the builder: moves or reformats data"
    return f"elementwise or data movement: {', '.join(sorted(operators))}"


_NUMBER = re.compile(r"\d+")
_LIMIT = re.compile(r"(?P<kind>[\w-]+)\s*>\s*(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")
_KINDS: Final = ("fp32", "fp16", "bf16", "unfused")
_BY_BUILDER: Final = "moves made by the builder"


class BlockRow(NamedTuple):
    """Blocks that compute alike; counts are of each block."""

    blocks: str  # their common name, such as "vision.blocks.0 to 23"
    num_blocks: int
    layers: dict[str, int]  # by precision
    num_attention: int
    num_fused: int


class LayerLimit(NamedTuple):
    """A limit such as "fp32>5%": on layers of a precision, or on attention that is "unfused"."""

    kind: str
    number: float
    is_percent: bool


def block_rows(audit: StageAudit) -> list[BlockRow]:
    """Return the rows in the order of the engine; a layer counts for the first block that it holds nodes of."""
    layers: dict[str, Counter[str]] = {}
    attention: dict[str, list[bool]] = {}
    for layer in audit.layers:
        layers.setdefault(_first_block(layer), Counter())[layer.precision] += 1
    for item in audit.attention:
        attention.setdefault(item.block, []).append(item.fused)
        layers.setdefault(item.block, Counter())
    grouped: dict[tuple[str, tuple[tuple[str, int], ...], int, int], list[str]] = {}
    for block, counts in layers.items():
        fused = attention.get(block, [])
        key = (_NUMBER.sub("*", block), tuple(sorted(counts.items())), len(fused), sum(fused))
        grouped.setdefault(key, []).append(block)
    return [
        BlockRow(_join(blocks), len(blocks), dict(layers[blocks[0]]), num_attention, num_fused)
        for (_, _, num_attention, num_fused), blocks in grouped.items()
    ]


def fp32_rows(audit: StageAudit) -> list[tuple[str, str, int]]:
    """Return (reason, blocks, layers) of all layers in fp32, alike ones in one row."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in audit.layers:
        if layer.precision == "fp32":
            block = _first_block(layer)
            found.setdefault((layer.reason, _NUMBER.sub("*", block)), []).append(block)
    return [(reason, _join(dict.fromkeys(blocks)), len(blocks)) for (reason, _), blocks in found.items()]


def parse_limit(text: str) -> LayerLimit:
    """Read such as "fp32>5%", "fp32>20" or "unfused>0"; ConfigError for anything else."""
    match = _LIMIT.fullmatch(text.strip())
    if match is None or match["kind"] not in _KINDS:
        expected = "such as fp32>5%" if match is None else did_you_mean(match["kind"], _KINDS)
        raise ConfigError("--fail-on", got=repr(text), expected=expected, remedy="Quote it: --fail-on 'fp32>5%'.")
    return LayerLimit(match["kind"], float(match["number"]), bool(match["percent"]))


def exceeded(audit: StageAudit, limit: LayerLimit) -> str | None:
    """Say by what the audit is beyond the limit; None when it is not."""
    if limit.kind == "unfused":
        found, total = sum(not item.fused for item in audit.attention), len(audit.attention)
    else:
        found, total = audit.layer_precisions.get(limit.kind, 0), len(audit.layers)
    value = 100 * found / max(total, 1) if limit.is_percent else found
    if value <= limit.number:
        return None
    share = f" ({value:.1f} %)" if limit.is_percent else ""
    what = "attention is unfused" if limit.kind == "unfused" else f"layers are {limit.kind}"
    return f"{found} of {total} {what}{share}, more than {limit.number:g}{'%' if limit.is_percent else ''}"


def _first_block(layer: LayerAudit) -> str:
    return layer.blocks[0] if layer.blocks else _BY_BUILDER


def _join(blocks: Iterable[str]) -> str:
    """Name blocks that differ in one number: "decoder.layers.0 to 22.block"."""
    names = list(blocks)
    numbers = [int(match.group()) for name in names if (match := _NUMBER.search(name))]
    if len(names) == 1 or not numbers:
        return names[0]
    low, high = min(numbers), max(numbers)
    span = f"{low} to {high}" if high - low + 1 == len(names) else f"{low} .. {high}"
    return _NUMBER.sub(span, names[0], count=1)
