"""The passes that every export runs, between tracing and quantization, in the order in which they help each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rfedge.export.passes.compact_attention import CompactAttention
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.fold_gates import FoldGates
from rfedge.export.passes.fold_normalisation import FoldNormalisation
from rfedge.export.passes.fusible_rms_norm import FusibleRMSNorm
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.slim import Slim
from rfedge.jobs.progress import Count

# The exporter writes an LSTM's weights as slices of PyTorch's, put together in ONNX's order: a runtime that does this when
# it loads holds the weights of a head three times over.
_LARGEST_HEAD_WEIGHT_BYTES: Final = 1 << 30


def standard_passes() -> list[GraphPass]:
    """Return new passes: dead weight first, so that no later pass computes it, and last what the others left unread."""
    return [DropDead(), Slim(), FoldNormalisation(), FoldGates(), CompactAttention(), FusibleRMSNorm(), DropDead()]


def head_passes() -> list[GraphPass]:
    """Return new passes for a head: whatever is made of weights alone is made now."""
    return [Slim(largest_bytes=_LARGEST_HEAD_WEIGHT_BYTES), DropDead()]


def apply_passes(
    source: Path, target: Path, passes: Sequence[GraphPass] | None = None, *, on_weight: Count = lambda *_: None
) -> list[Path]:
    """Run passes, by default the standard ones, on the fp32 graph at `source`; write `target`, return the files written."""
    model = read_graph(source)
    for graph_pass in standard_passes() if passes is None else passes:
        graph_pass(model)
    return write_graph(model, target, on_weight=on_weight)
