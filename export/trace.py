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

from rfedge.contract import GraphContract
from rfedge.errors import ExportError, explain
from rfedge.model import RoboFlamingo

__all__ = ["OPSET", "trace_backbone", "trace_head"]

OPSET = 20
# ONNX files are protobufs, which end at 2 GiB; beyond this the weights go into a file beside the graph.
_INLINE_LIMIT_BYTES = 1_500_000_000


def trace_backbone(policy: RoboFlamingo, contract: GraphContract, path: Path) -> list[Path]:
    """Write backbone.onnx, all shapes static; return every file written (graph, and weights when they are large)."""
    return _trace(policy.backbone, contract, path, dynamic_shapes=None, example_steps=1)


def trace_head(policy: RoboFlamingo, contract: GraphContract, path: Path) -> list[Path]:
    """Write head.onnx; the step axis of `features` is dynamic, so one graph serves carry (1) and replay (window)."""
    is_gpt = policy.config.head.kind == "gpt"  # it has a position for each frame of the window and no more
    longest = policy.config.window if is_gpt else 4096
    if longest == 1:
        return _trace(policy.head, contract, path, dynamic_shapes=None, example_steps=1)
    shapes = {
        spec.name: {1: torch.export.Dim("step", min=1, max=longest)} if -1 in spec.shape else None
        for spec in contract.inputs
    }
    return _trace(policy.head, contract, path, dynamic_shapes=shapes, example_steps=min(policy.config.window + 1, longest))


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


def _trace(
    module: nn.Module,
    contract: GraphContract,
    path: Path,
    *,
    dynamic_shapes: dict[str, dict[int, torch.export.Dim] | None] | None,
    example_steps: int,
) -> list[Path]:
    example = contract.sample_inputs(np.random.default_rng(0), dynamic_size=example_steps)
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
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
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            explain(
                f"module {type(module).__name__}",
                got=str(error).strip().splitlines()[0],
                expected="a graph the dynamo exporter can translate",
                remedy="Report it with the policy's config.json.",
            )
        ) from error
    if program is None:
        raise ExportError(explain(f"module {type(module).__name__}", got="no program", expected="one", remedy="Report it."))
    external = size_bytes > _INLINE_LIMIT_BYTES
    program.save(str(path), external_data=external)
    return [path, path.with_name(path.name + ".data")] if external else [path]
