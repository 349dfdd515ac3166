"""ONNX -> TensorRT network, strongly typed, and the builder's log: errors, memory figures and, at the end, its layers.

A refusal names the ONNX node and the PyTorch module it came from. With detailed profiling both modules print every layer
of the finished engine, so that the audit needs no GPU.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx

from rfedge.bundle.block_names import SCOPES_KEY
from rfedge.errors import ExportError
from rfedge.jobs.progress import Count
from rfedge.nvidia.tensorrt import TensorRt

_LAYERS_HEADER: Final = "Layers:"
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_NO_NEWS: Final = ("cudaError", "Error reading CUDA GPU properties")  # of a machine that builds without a GPU


@dataclass(slots=True)
class BuildLog:
    """Collected lines of one build."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers_text: str = ""  # the builder's description of the finished engine
    weights_bytes: int = 0  # of the finished engine, 0 where not said
    activations_bytes: int = 0
    # what a signal raised in a callback; it cannot pass through C++ and is raised again later
    interrupt: BaseException | None = None

    def add_info(self, text: str) -> None:
        if match := _WEIGHTS.search(text):
            self.weights_bytes = int(match.group(1))
        elif match := _ACTIVATIONS.search(text):
            self.activations_bytes = int(match.group(1))
        elif text.startswith(_LAYERS_HEADER):
            self.layers_text = text


def attach_log(module: TensorRt, log: BuildLog) -> Any:
    """Return an `ILogger` of `module` that fills `log`."""
    trt = module.trt

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            try:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    if not any(part in text for part in _NO_NEWS):
                        log.errors.append(text)
                elif severity == trt.ILogger.WARNING:
                    log.warnings.append(text)
                else:
                    log.add_info(text)
            except BaseException as error:
                log.interrupt = error

    return _Logger()


PERMILLE: Final = 1000


class PhaseFraction:
    """Adds up phases: a phase inside step i of its parent fills that step by its own fraction."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._done: dict[str, int] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        self._phases[name] = (parent if parent in self._phases else None, max(num_steps, 1))
        self._done[name] = 0

    def step(self, name: str, step: int) -> None:
        if name in self._done:
            self._done[name] = max(self._done[name], step + 1)
            roots = [name for name, (parent, _) in self._phases.items() if parent is None]
            self._best = max([self._best, *map(self._fraction, roots)])

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)
        self._done.pop(name, None)

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1; it never falls, though the builder may open further phases."""
        return self._best

    def _fraction(self, name: str) -> float:
        children = [child for child, (parent, _) in self._phases.items() if parent == name]
        inside = max((self._fraction(child) for child in children), default=0.0)
        return min((self._done[name] + inside) / self._phases[name][1], 1.0)


def attach_progress(module: TensorRt, log: BuildLog, report: Count) -> Any | None:
    """Return an `IProgressMonitor` that calls `report(permille, 1000)`; None where the module has none."""
    trt = module.trt
    if not hasattr(trt, "IProgressMonitor"):
        return None
    fraction = PhaseFraction()

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            fraction.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                fraction.step(phase_name, step)
                report(int(PERMILLE * fraction.fraction), PERMILLE)
            except BaseException as error:
                log.interrupt = error
            return log.interrupt is None  # False stops the build

        def phase_finish(self, phase_name: str) -> None:
            fraction.finish(phase_name)

    return _Monitor()


_INNER = re.compile(r"Error Code \d+: [\w ]+\((?P<text>.*?)(?:\.? In \w+ at [^)]*)?\)\s*$", re.DOTALL)


class ModuleNames:
    """ONNX node name -> operator and PyTorch module, read from the exporter's metadata."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._operators: dict[str, str] = {node.name: node.op_type for node in model.graph.node if node.name}
        self._modules = {node.name: _module(node) for node in model.graph.node if node.name}
        # Quantizers carry no scope of their own: they belong to the MatMul that reads them.
        readers = {name: node for node in model.graph.node for name in node.input}
        for node in reversed(model.graph.node):
            if self._modules.get(node.name) == "" and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                reader = readers.get(node.output[0])
                self._modules[node.name] = self._modules.get(reader.name, "") if reader is not None else ""

    def operator(self, node: str) -> str:
        return self._operators.get(node, "")

    def module(self, node: str) -> str:
        return self._modules.get(node, "")

    def describe(self, node: str) -> str:
        """Return such as "node node_MatMul_27 (MatMul) of PyTorch module vision.blocks.0.qkv"."""
        text = f"node {node} ({self.operator(node) or 'unknown operator'})"
        return f"{text} of PyTorch module {self.module(node)}" if self.module(node) else text

    def find_in(self, text: str) -> str | None:
        """Return the ONNX node that `text` names; of several the longest name, None where there is none."""
        found = [name for name in self._operators if name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
        return max(found, key=len, default=None)


def _module(node: onnx.NodeProto) -> str:
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get(SCOPES_KEY)
    if scopes is None:
        return ""
    names = [scope for scope in ast.literal_eval(scopes) if scope]
    return names[-2] if len(names) > 1 else ""


def parse_network(
    module: TensorRt, builder: Any, data: bytes, path: Path, names: ModuleNames, log: BuildLog, logger: Any
) -> tuple[Any, Any]:
    """Return (network, parser); the parser owns the weights and must live until the build ends."""
    trt = module.trt
    # Needed to opt in on TensorRT 10, accepted and without effect on 11: every type then comes from the graph.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if parser.parse(data, str(path)):
        return network, parser
    if log.interrupt is not None:
        raise log.interrupt
    reasons = []
    for error in map(parser.get_error, range(parser.num_errors)):
        node, text = error.node_name(), _plain(error.desc())
        reasons.append(f"{names.describe(node)}: {text}" if node else text)
    raise ExportError(
        f"graph {path.name}",
        got=reasons[0] if reasons else "a refusal without a reason",
        expected=f"operators that {module.name} {module.version} can parse",
        remedy=f"{len(reasons) - 1} more nodes are refused too." if len(reasons) > 1 else "Report it with the bundle.",
    )


def name_failure(errors: list[str], names: ModuleNames) -> str:
    """Return the builder's errors as one phrase that leads with the ONNX node and PyTorch module where one is named."""
    if not errors:
        return "a failure without a reason"
    for text in errors:
        if (node := names.find_in(text)) is not None:
            return f"{names.describe(node)}: {_plain(text)}"
    return _plain(errors[0])


def _plain(text: str) -> str:
    """Return the sentence inside TensorRT's wrapping of codes, functions and source lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if "cudaError" not in line and not line.startswith("Invalid Node")] or lines
    first = lines[0] if lines else "no text"
    match = _INNER.search(first)
    return (match.group("text") if match else first).strip().rstrip(".")


def constant_bytes(module: TensorRt, network: Any) -> dict[str, int]:
    """Return bytes of the network's constants per element type: what the graph asks the engine to hold."""
    trt = module.trt
    found: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONSTANT:
            tensor = layer.get_output(0)
            size = int(trt.volume(tensor.shape) * _ITEM_BYTES[tensor.dtype.name])
            found[tensor.dtype.name] = found.get(tensor.dtype.name, 0) + size
    return found


_ITEM_BYTES: Final[Mapping[str, float]] = {
    "FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "FP8": 1, "INT32": 4, "INT64": 8, "INT4": 0.5,
    "FP4": 0.5, "E8M0": 1,
}  # fmt: skip
