"""Heads in NumPy: for a robot whose backbone runs on TensorRT, and to have a second opinion on what a runtime computes.

The head's own graph is interpreted, so every member of the family runs, and a head in NumPy can never be another head than
the one that was proved. What depends on no input is computed when the runner is activated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.contract import GraphContract
from rfedge.errors import BackendUnavailableError
from rfedge.runtimes.backends.base import GraphRunner
from rfedge.runtimes.backends.graph_values import ValuedGraph, read_valued_graph
from rfedge.runtimes.backends.numpy_operators import OPERATORS, Operator

__all__ = ["NumpyHead"]

Array = npt.NDArray[Any]


class _Step(NamedTuple):
    call: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class NumpyHead(GraphRunner):
    """Runs a head graph with NumPy alone.

    Args:
        path: the bundle's head.onnx, with its weights inside.
        contract: the head's inputs and outputs.
        check_inputs: compare every input with the contract on each call.

    Raises:
        ArtifactError: on activation, the file cannot be read.
        BackendUnavailableError: on activation, the graph has an operator that is not here.
    """

    def __init__(self, path: Path, contract: GraphContract, *, check_inputs: bool = True) -> None:
        super().__init__("head", contract, check_inputs=check_inputs)
        self._path = path
        self._steps: list[_Step] = []
        self._constants: dict[str, Array] = {}

    def effective_settings(self) -> dict[str, str]:
        """Which NumPy; its threads are those of the BLAS it was built with."""
        return {"library": f"numpy {np.__version__}"}

    def _activate(self) -> None:
        graph = read_valued_graph(self._path)
        self._steps, values = _fold(graph, self._path.name)
        needed = {name for step in self._steps for name in step.inputs} | set(graph.outputs)
        self._constants = {name: array for name, array in values.items() if name in needed}

    def _deactivate(self) -> None:
        self._steps, self._constants = [], {}

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values: dict[str, Array | None] = {"": None, **self._constants, **inputs}
        for call, names, outputs in self._steps:
            values.update(zip(outputs, call(*(values[name] for name in names)), strict=False))
        # copies: an output may be a view of an input or of a constant
        return {spec.name: np.array(values[spec.name], dtype=spec.dtype) for spec in self.contract.outputs}


def _fold(graph: ValuedGraph, name: str) -> tuple[list[_Step], dict[str, Array]]:
    """Return what must run at every call, and the value of everything else."""
    values = dict(graph.weights)
    steps = []
    for node in graph.nodes:
        if node.domain or node.op not in OPERATORS:
            raise BackendUnavailableError(
                f"graph {name}",
                got=f"operator {node.domain}{'.' if node.domain else ''}{node.op}",
                expected=f"one of {', '.join(OPERATORS)}",
                remedy="Run this head on onnxruntime.",
            )
        step = _Step(OPERATORS[node.op](node.attributes), node.inputs, node.outputs)
        if all(name in values for name in step.inputs if name):
            arrays = step.call(*(values.get(name) for name in step.inputs))
            values.update(zip(step.outputs, (np.ascontiguousarray(array) for array in arrays), strict=False))
        else:
            steps.append(step)
    return steps, values
