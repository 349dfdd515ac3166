"""Cut a traced backbone in two at the latents of its frame: the same nodes on the same weights, in two files.

The two graphs one after the other return what the one returns, to the last bit.

Requires: `media` is an output of the graph and reads the cameras alone.
Ensures: every node is in one of the two graphs; each has the inputs and outputs of its contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from rfedge.contract import MEDIA, BackboneStage, GraphContract
from rfedge.errors import ExportError
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.jobs.progress import Count


def split_stages(
    source: Path,
    stages: Mapping[BackboneStage, GraphContract],
    targets: Mapping[BackboneStage, Path],
    *,
    on_weight: Count = lambda *_: None,
) -> None:
    """Write each stage of the fp32 backbone at `source` to its target."""
    for stage, contract in stages.items():
        model = read_graph(source)
        _cut(model, stage, contract)
        write_graph(model, targets[stage], on_weight=on_weight)


def _cut(model: ir.Model, stage: BackboneStage, contract: GraphContract) -> None:
    """Keep what leads from the inputs of the contract to its outputs."""
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    if MEDIA not in outputs:
        raise _not_here(stage, f"no output {MEDIA}", "the latents of a frame among the graph's outputs")
    inputs = {str(value.name): value for value in graph.inputs}
    graph.outputs.clear()
    graph.outputs.extend(outputs[spec.name] for spec in contract.outputs)
    if any(spec.name == MEDIA for spec in contract.inputs):
        media = outputs[MEDIA]  # every reader reads a graph input; what computes it is then read by nobody
        media.name, inputs[MEDIA] = f"{MEDIA}/computed", ir.Value(name=MEDIA, shape=media.shape, type=media.type)
        media.replace_all_uses_with(inputs[MEDIA])
    DropDead()(model)
    given = [spec.name for spec in contract.inputs]
    for name, value in inputs.items():
        if name not in given and value.uses():
            raise _not_here(stage, f"a path around {MEDIA} from {name}", f"{MEDIA} as the only one")
    graph.inputs.clear()
    graph.inputs.extend(inputs[name] for name in given)


def _not_here(stage: BackboneStage, got: str, expected: str) -> ExportError:
    remedy = "Export it in one graph (--stages one) and report it with the policy's config.json."
    return ExportError(f"{stage} stage", got=got, expected=expected, remedy=remedy)
