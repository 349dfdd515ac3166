"""The layers of a finished engine, from whichever text tells of them.

Three texts, one form: the inspector's JSON of TensorRT 10 ("Format/Datatype"), that of 11 ("Format" and "Datatype"
apart), and the lines that the builder prints, which need no GPU to read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

_PROFILE = re.compile(r"\[profile (\d+)\]|_myl(\d+)_\d+$")
_ONNX_NODES = re.compile(r"\[ONNX Layer: (.*?)\]")
_LINE = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>[^,]*), Inputs: \[(?P<Inputs>.*?)\], "
    r"Constants: \[(?P<Constants>.*?)\], Outputs: \[(?P<Outputs>.*?)\], TacticName: .*?(?:Metadata:(?P<Metadata>.*))?$"
)
_OPERAND = re.compile(r"\{ Name: (.*?), Dimensions: \[([\d,-]*)\],.*?Datatype: (\w+)")
# word in TensorRT's texts -> our name; longer words first, so that "BFloat16" is not taken for "Float"
_PRECISIONS: Final = {
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16", "float8": "fp8", "fp8": "fp8",
    "fp4": "fp4", "float": "fp32", "fp32": "fp32", "uint8": "uint8", "int8": "int8", "int4": "int4", "int32": "int32",
    "int64": "int64", "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operand:
    name: str
    precision: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer of an engine."""

    name: str
    kind: str  # the engine's word for its kernel, such as "gemm" or "kgen"
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    onnx_nodes: tuple[str, ...]  # fused into it

    @property
    def profile(self) -> int:
        """Which optimisation profile it serves, of an engine with more than one; its name tells."""
        found = _PROFILE.search(self.name)
        return int(found.group(1) or found.group(2)) if found else 0


def layers_from_log(text: str) -> list[EngineLayer]:
    """Read the lines that follow "Layers:" in the builder's log."""
    layers: list[dict[str, Any]] = [
        match.groupdict("") for line in text.splitlines() if (match := _LINE.search(line)) is not None
    ]
    for layer in layers:
        for kind in ("Inputs", "Constants", "Outputs"):
            layer[kind] = [
                {"Name": name, "Dimensions": [size for size in shape.split(",") if size], "Datatype": dtype}
                for name, shape, dtype in _OPERAND.findall(layer[kind])
            ]
    return [_from_json(layer) for layer in layers]


def _precision(text: str) -> str:
    low = text.lower()
    return next((name for word, name in _PRECISIONS.items() if word in low), text)


def layers_from_inspector(text: str) -> list[EngineLayer]:
    """Read the inspector's JSON; empty where the engine was built without detailed profiling (names only)."""
    layers = json.loads(text).get("Layers", [])
    return [_from_json(layer) for layer in layers if isinstance(layer, dict)]


def _from_json(layer: dict[str, Any]) -> EngineLayer:
    constants = [_operand_from_json(item) for item in layer.get("Constants", [])]
    # A convolution of TensorRT 10 tells of its weights as {"Type": "Int8", "Count": n}, without a shape.
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Count"):
        constants.append(Operand("weights", _precision(str(weights.get("Type", ""))), (int(weights["Count"]),)))
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")).strip(),
        inputs=tuple(_operand_from_json(item) for item in layer.get("Inputs", [])),
        constants=tuple(constants),
        outputs=tuple(_operand_from_json(item) for item in layer.get("Outputs", [])),
        onnx_nodes=tuple(_ONNX_NODES.findall(str(layer.get("Metadata", "")))),
    )


def _operand_from_json(item: dict[str, Any]) -> Operand:
    text = str(item.get("Datatype") or item.get("Format/Datatype") or item.get("Format") or "")
    return Operand(str(item.get("Name", "")), _precision(text), tuple(int(size) for size in item.get("Dimensions", [])))
