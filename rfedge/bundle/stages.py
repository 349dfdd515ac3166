"""A backbone in one graph or two: in what order they are called, what each is handed, which blocks are in which.

Each stage gets what its contract names, out of the caller's inputs and of what the stages before it returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from rfedge.config import Precision, check_precision
from rfedge.contract import BackboneStage, GraphContract, GraphName, PolicyContract
from rfedge.errors import ConfigError
from rfedge.recurrence import Arrays, BackboneCall

TWO_STAGES: Final[tuple[BackboneStage, ...]] = ("vision", "decoder")
_VISION_BLOCKS: Final = ("preprocess", "vision", "resampler")


def call_in_order(
    contract: GraphContract, stages: Sequence[tuple[GraphContract, BackboneCall]], inputs: Arrays
) -> dict[str, npt.NDArray[Any]]:
    """Call the stages one after the other and return the outputs that `contract`, the whole backbone's, names."""
    known = dict(inputs)
    for stage, call in stages:
        known.update(call({spec.name: known[spec.name] for spec in stage.inputs}))
    return {spec.name: known[spec.name] for spec in contract.outputs}


def graph_of_block(contract: PolicyContract, block: str) -> GraphName:
    """Return the graph that holds a block, as manifests and reports name it (see `rfedge.bundle.block_names`)."""
    if block.partition(".")[0] == "head":
        return "head"
    if not contract.backbone_stages:
        return "backbone"
    return stage_of_block(block)


def stage_of_block(block: str) -> BackboneStage:
    """Return the stage of a two-stage backbone that holds a block."""
    return "vision" if block.startswith(_VISION_BLOCKS) else "decoder"


@dataclass(frozen=True, slots=True)
class StagePrecisions:
    """Requested precision of each graph of the backbone."""

    graphs: Mapping[GraphName, Precision]  # graph -> precision, in call order: "backbone" alone, or "vision" and "decoder"

    @property
    def requested(self) -> str:
        """The request as a manifest records it: one name where all graphs have it, else "vision=fp16,decoder=int8"."""
        if len(set(self.graphs.values())) == 1:
            return next(iter(self.graphs.values()))
        return ",".join(f"{graph}={precision}" for graph, precision in self.graphs.items())

    @property
    def text(self) -> Precision:
        """That of the graph which reads instructions: the last."""
        return list(self.graphs.values())[-1]


def parse_precisions(text: str, *, two_stages: bool) -> StagePrecisions:
    """Read a precision for all graphs of the backbone, such as "int8", or one for each, such as "vision=fp16,decoder=int8".

    Raises ConfigError for unknown names; for two where there is one graph; for one of two; or for `mixed` among two.
    """
    if "=" not in text:
        precision = check_precision(text)
        if two_stages and precision == "mixed":
            raise _refused(text, "a precision that each stage can have by itself: mixed is searched over one graph")
        return StagePrecisions(dict.fromkeys(TWO_STAGES if two_stages else ("backbone",), precision))
    if not two_stages:
        raise _refused(text, "one precision for a backbone in one graph", "Pass --stages two, or name one precision.")
    named = [part.strip().partition("=") for part in text.split(",")]
    if sorted(stage for stage, _, _ in named) != sorted(TWO_STAGES):
        raise _refused(text, "each of vision and decoder once")
    chosen = {stage: check_precision(precision) for stage, _, precision in named}
    if "mixed" in chosen.values():
        raise _refused(text, "a precision that each stage can have by itself: mixed is searched over one graph")
    return StagePrecisions({stage: chosen[stage] for stage in TWO_STAGES})


def _refused(
    text: str, expected: str, remedy: str = "Such as --stages two --precision vision=fp16,decoder=int8."
) -> ConfigError:
    return ConfigError("precision", got=repr(text), expected=expected, remedy=remedy)
