"""Precisions of the blocks of a bundle, counted over their MatMuls, and the one name that the bundle goes by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import model_validator

from rfedge.bundle.stages import parse_precisions, stage_of_block
from rfedge.records.record import Record

# How schema version 2 writes a block that is partly quantized: "int8 (3 of 4 MatMuls)".
_VERSION_2 = re.compile(r"(\S+) \((\d+) of (\d+) MatMuls\)")


class BlockPrecision(Record):
    """Precision of one PyTorch block."""

    # kind -> number of the block's MatMuls and convolutions with weights: {"int8": 3, "fp32": 1}. Bundles of schema version
    # 2 did not count where all have one kind: 1 stands there.
    matmuls: dict[str, int]
    on_cpus: str | None = None  # kind of the graph for CPUs where that is another one

    @model_validator(mode="before")
    @classmethod
    def _read_version_2(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, on_cpus, _ = value.partition(" on CPUs")
        if on_cpus:
            return {"matmuls": {"fp32": 1}, "on_cpus": kind}
        matmuls = {kind: int(count) for kind, count, _ in _VERSION_2.findall(value)}
        if not matmuls:
            return {"matmuls": {value: 1}}
        rest = int(_VERSION_2.findall(value)[0][2]) - sum(matmuls.values())
        return {"matmuls": {**matmuls, "fp32": rest} if rest else matmuls}

    @classmethod
    def count(cls, kinds: Iterable[str]) -> BlockPrecision:
        """Count the kinds of a block's MatMuls; fp32 stands last."""
        counts = Counter(kinds)
        return cls(matmuls={kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind == "fp32", kind))})

    @property
    def kind(self) -> str:
        """The lowest kind: "int8" where at least one MatMul is int8."""
        return next(iter(self.matmuls))

    def __str__(self) -> str:
        """Return "int8", or "int8 (3 of 4 MatMuls)" where some are in fp32."""
        if self.on_cpus is not None:
            return f"{self.on_cpus} on CPUs"
        if len(self.matmuls) == 1:
            return self.kind
        total = sum(self.matmuls.values())
        return ", ".join(f"{kind} ({num} of {total} MatMuls)" for kind, num in self.matmuls.items() if kind != "fp32")


def summarise_blocks(requested: str, blocks: Mapping[str, BlockPrecision]) -> str:
    """Return the precision a bundle may be called by: the requested one if some block has it, else the commonest."""
    if "=" not in requested:
        return _summarise(requested, blocks.values())
    asked = parse_precisions(requested, two_stages=True)
    found = {
        stage: _summarise(
            precision, [found for block, found in blocks.items() if block != "head" and stage_of_block(block) == stage]
        )
        for stage, precision in asked.graphs.items()
    }
    if len(set(found.values())) == 1:
        return found["decoder"]
    return ",".join(f"{stage}={kind}" for stage, kind in found.items())


def _summarise(requested: str, blocks: Iterable[BlockPrecision]) -> str:
    kinds = [block.kind for block in blocks]
    if requested == "mixed" and "int8" in kinds:
        return requested
    if not kinds or requested in kinds:
        return requested
    return Counter(kinds).most_common(1)[0][0]
