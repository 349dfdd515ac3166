"""A backbone in one graph or two: in what order they are called, what each is handed, which blocks are in which.

Each stage gets what its contract names, out of the caller's inputs and of what the stages before it returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from rfedge.config import Precision, check_precision
from rfedge.contract import BackboneStage, GraphContract, GraphName, PolicyContract
from rfedge.errors import ConfigError
from rfedge.recurrence import Arrays, BackboneCall

__all__ = [
    "TWO_STAGES",
    "StagePrecisions",
    "block_kind",
    "call_in_order",
    "graph_of_block",
    "parse_precisions",
    "summarise_blocks",
]

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
    return _stage_of_block(block)


def _stage_of_block(block: str) -> BackboneStage:
    return "vision" if block.startswith(_VISION_BLOCKS) else "decoder"


@dataclass(frozen=True, slots=True)
class StagePrecisions:
    """What each graph of the backbone was asked to be.

    Attributes:
        graphs: graph -> precision, in call order: "backbone" alone, or "vision" and "decoder".
    """

    graphs: Mapping[GraphName, Precision]

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

    Raises:
        ConfigError: unknown names; or one for each of two graphs where there is one, not for both, or `mixed` among them.
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


def summarise_blocks(requested: str, blocks: Mapping[str, str]) -> str:
    """Return the precision a bundle may be called by: the requested one if some block has it, else the commonest.

    A mixed plan that left every block in float is fp32. With a precision for each stage, that of each stage's blocks.

    Args:
        requested: of the manifest.
        blocks: PyTorch block -> what it computes in, such as "int8 (3 of 4 MatMuls)".
    """
    if "=" not in requested:
        return _summarise(requested, blocks.values())
    asked = parse_precisions(requested, two_stages=True)
    found = {
        stage: _summarise(
            precision, [text for block, text in blocks.items() if block != "head" and _stage_of_block(block) == stage]
        )
        for stage, precision in asked.graphs.items()
    }
    if len(set(found.values())) == 1:
        return found["decoder"]
    return ",".join(f"{stage}={kind}" for stage, kind in found.items())


def _summarise(requested: str, blocks: Iterable[str]) -> str:
    kinds = [block_kind(text) for text in blocks]
    if requested == "mixed" and "int8" in kinds:
        return requested
    if not kinds or requested in kinds:
        return requested
    return Counter(kinds).most_common(1)[0][0]


def block_kind(text: str) -> str:
    """Return "int8" for "int8 (3 of 4 MatMuls)", as the exporter's audit writes a block that is quantized in part."""
    return text.partition(" ")[0]
