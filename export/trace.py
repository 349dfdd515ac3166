"""Trace the two halves of a policy into ONNX with the dynamo exporter, under the names of the contract."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rfedge.bundle.block_names import SCOPES_KEY
from rfedge.contract import MEDIA, GraphContract
from rfedge.errors import ExportError
from rfedge.export.passes.graph_files import INLINE_LIMIT_BYTES, graph_files
from rfedge.model import RoboFlamingo

OPSET = 20


def trace_backbone(policy: RoboFlamingo, contract: GraphContract, path: Path) -> list[Path]:
    """Write backbone.onnx, with `media` as an output where the contract names it; return every file written.

    Only the token axis is dynamic: an instruction of 14 tokens need not cost 32, and padding changes no feature.
    """
    policy.backbone.returns_media = any(spec.name == MEDIA for spec in contract.outputs)
    return trace_graph(policy.backbone, contract, path)


def trace_head(policy: RoboFlamingo, contract: GraphContract, path: Path) -> list[Path]:
    """Write head.onnx: one frame a call, but for a GPT head, whose step axis is dynamic until its window is full."""
    return trace_graph(policy.head, contract, path, example_size=policy.config.window)


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    # They warn about absent torchvision operators that we never use, and about every LayerNorm they do not fold.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _dynamic_shapes(contract: GraphContract) -> dict[str, dict[int, torch.export.Dim] | None] | None:
    """One symbol for all axes of the same name, such as the tokens of the embedding and of its mask."""
    symbols: dict[str, torch.export.Dim] = {}
    shapes: dict[str, dict[int, torch.export.Dim] | None] = {}
    for spec in contract.inputs:
        axes = [axis for axis, size in enumerate(spec.shape) if size == -1 and spec.longest != 1]
        for axis in axes:
            name = spec.axes[axis]
            symbols.setdefault(name, torch.export.Dim(name, min=1, max=spec.longest))
        shapes[spec.name] = {axis: symbols[spec.axes[axis]] for axis in axes} or None
    return shapes if symbols else None


def trace_graph(module: nn.Module, contract: GraphContract, path: Path, *, example_size: int | None = None) -> list[Path]:
    """Write any module under the names of `contract`, whose axes of size -1 become dynamic; return every file written.

    `example_size` of a dynamic axis while tracing is its longest if not given.
    """
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program = trace_program(module, contract, example_size=example_size)
    program.save(str(path), external_data=size_bytes > INLINE_LIMIT_BYTES)
    return graph_files(path)


def trace_program(module: nn.Module, contract: GraphContract, *, example_size: int | None = None) -> torch.onnx.ONNXProgram:
    """Return the graph in memory, on the module's own weights; arguments and errors as `trace_graph`."""
    example = contract.sample_inputs(np.random.default_rng(0), dynamic_size=example_size)
    try:
        with _quiet_loggers(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch.export; ours are turned into errors by the tests
            program = torch.onnx.export(
                module.eval(),
                kwargs={name: torch.from_numpy(array) for name, array in example.items()},
                dynamo=True,
                input_names=[spec.name for spec in contract.inputs],
                output_names=[spec.name for spec in contract.outputs],
                opset_version=OPSET,
                dynamic_shapes=_dynamic_shapes(contract),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"module {type(module).__name__}",
            got=str(error).strip().splitlines()[0],
            expected="a graph the dynamo exporter can translate",
            remedy="Report it with the policy's config.json.",
        ) from error
    if program is None:
        raise ExportError(f"module {type(module).__name__}", got="no program", expected="one", remedy="Report it.")
    for node in program.model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES_KEY)
        node.metadata_props.clear()  # the exporter also writes source paths of the machine it ran on
        if scopes is not None:
            node.metadata_props[SCOPES_KEY] = scopes
    return program
