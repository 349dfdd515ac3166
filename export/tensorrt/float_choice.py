"""Whether an engine's floats are fp16 and which nodes stay in fp32: as the manifest says, unless the user says otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Literal

from rfedge.bundle.artifact import Bundle
from rfedge.contract import GraphName
from rfedge.errors import ConfigError
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.tensorrt.engine_form import default_islands


def choose_islands(bundle: Bundle, stage: GraphName, floats: Literal["fp16", "fp32"] | None) -> dict[str, str] | None:
    """Return the nodes of a graph that stay in fp32 while its other floats are fp16, with the reason; None leaves all types.

    Args:
        bundle: opened.
        stage: which graph.
        floats: what the user asked for; None takes what the bundle was proved in, of older bundles fp32.

    Raises:
        ConfigError: fp16 for a graph in bf16.
    """
    record = bundle.manifest.tensorrt
    form = None if record is None else record.graphs.get(stage)
    if (floats or (form.floats if form is not None else "fp32")) == "fp32":
        return None
    if any(block.kind == "bf16" for block in bundle.manifest.precision.blocks.values()):
        raise ConfigError("--floats", got="fp16", expected="fp32 for a bundle in bf16", remedy="Leave --floats out.")
    if form is not None and form.islands:
        return form.islands
    return default_islands(read_graph(bundle.path(stage)))


def float_key(islands: Collection[str] | None) -> dict[str, str | int | bool]:
    """Return the part of the cache key that says which floats are fp16."""
    if islands is None:
        return {"floats": "as in the graph"}
    names = hashlib.sha256("\n".join(sorted(islands)).encode()).hexdigest()[:12]
    return {"floats": "fp16", "islands": names}
