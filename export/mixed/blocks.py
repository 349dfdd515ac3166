"""The blocks that a plan of mixed precision decides about: the modules that hold MatMuls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rfedge.export.int8.matmuls import quantizable_matmuls
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.passes.graph_queries import block_of


def quantizable_blocks(graph: Path, keep_float: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return block -> names of its MatMuls, in the order of the graph; a block is the module that holds a MatMul.

    Attention over the cameras and the feed-forward after it are two: they differ most in what int8 costs them.
    """
    blocks: dict[str, list[str]] = {}
    for matmul in quantizable_matmuls(read_graph(graph).graph, keep_float):
        blocks.setdefault(matmul.module.rpartition(".")[0] or matmul.module, []).append(matmul.name)
    return {name: tuple(matmuls) for name, matmuls in blocks.items()}


def kept_float(blocks: Iterable[str], int8: Iterable[str]) -> tuple[str, ...]:
    """Return what `quantize_int8` must keep in float so that only the blocks `int8` are quantized."""
    chosen = set(int8)
    # The dot tells "vision.blocks.1" from "vision.blocks.10".
    return tuple(f"{block}." for block in blocks if block not in chosen)


def block_of_values(graph: Path, blocks: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return tensor -> block for everything that `graph`, in float or int8, computes inside one of `blocks`.

    A node of no MatMul belongs to the block whose MatMuls read it, else to that whose MatMuls it reads.
    """
    of_matmul = {name: block for block, names in blocks.items() for name in names}
    model = read_graph(graph).graph
    nodes = list(model)
    found: dict[str, str] = {}
    for node in nodes:
        block = of_matmul.get(str(node.name))
        if block is None and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Sub"):
            block = next(
                (of_matmul[str(use.node.name)] for use in node.outputs[0].uses() if str(use.node.name) in of_matmul), None
            )
        if block is None:
            origin = block_of(node)
            before = [found.get(str(value.name)) for value in node.inputs if value is not None]
            block = next((name for name in before if name is not None and name.startswith(origin)), None)
        if block is not None:
            found.update((str(value.name), block) for value in node.outputs)
    return found
