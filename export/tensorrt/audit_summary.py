"""An audit in one screen: layers per precision and block, attention fused or not, every layer in fp32 with its reason.

Blocks that are alike are one row: "vision.blocks.0 to 23". A user's limit on a share of the layers is read and checked here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from rfedge.errors import ConfigError, did_you_mean
from rfedge.export.tensorrt.audit import LayerAudit, StageAudit

_NUMBER = re.compile(r"\d+")
_LIMIT = re.compile(r"(?P<kind>[\w-]+)\s*>\s*(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")
_KINDS: Final = ("fp32", "fp16", "bf16", "unfused")
_BY_BUILDER: Final = "moves made by the builder"


class BlockRow(NamedTuple):
    """Blocks that compute alike; counts are of each block."""

    blocks: str  # their common name, such as "vision.blocks.0 to 23"
    num_blocks: int
    layers: dict[str, int]  # by precision
    num_attention: int
    num_fused: int


class LayerLimit(NamedTuple):
    """A limit such as "fp32>5%": on layers of a precision, or on attention that is "unfused"."""

    kind: str
    number: float
    is_percent: bool


def block_rows(audit: StageAudit) -> list[BlockRow]:
    """Return the rows in the order of the engine; a layer counts for the first block that it holds nodes of."""
    layers: dict[str, Counter[str]] = {}
    attention: dict[str, list[bool]] = {}
    for layer in audit.layers:
        layers.setdefault(_first_block(layer), Counter())[layer.precision] += 1
    for item in audit.attention:
        attention.setdefault(item.block, []).append(item.fused)
        layers.setdefault(item.block, Counter())
    grouped: dict[tuple[object, ...], list[str]] = {}
    for block, counts in layers.items():
        fused = attention.get(block, [])
        key = (_NUMBER.sub("*", block), tuple(sorted(counts.items())), len(fused), sum(fused))
        grouped.setdefault(key, []).append(block)
    return [
        BlockRow(
            _join(blocks),
            len(blocks),
            dict(layers[blocks[0]]),
            len(attention.get(blocks[0], [])),
            sum(attention.get(blocks[0], [])),
        )
        for blocks in grouped.values()
    ]


def fp32_rows(audit: StageAudit) -> list[tuple[str, str, int]]:
    """Return (reason, blocks, layers) of all layers in fp32, alike ones in one row."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in audit.layers:
        if layer.precision == "fp32":
            block = _first_block(layer)
            found.setdefault((layer.reason, _NUMBER.sub("*", block)), []).append(block)
    return [(reason, _join(dict.fromkeys(blocks)), len(blocks)) for (reason, _), blocks in found.items()]


def parse_limit(text: str) -> LayerLimit:
    """Read such as "fp32>5%", "fp32>20" or "unfused>0"; ConfigError for anything else."""
    match = _LIMIT.fullmatch(text.strip())
    if match is None or match["kind"] not in _KINDS:
        expected = "such as fp32>5%" if match is None else did_you_mean(match["kind"], _KINDS)
        raise ConfigError("--fail-on", got=repr(text), expected=expected, remedy="Quote it: --fail-on 'fp32>5%'.")
    return LayerLimit(match["kind"], float(match["number"]), bool(match["percent"]))


def exceeded(audit: StageAudit, limit: LayerLimit) -> str | None:
    """Say by what the audit is beyond the limit; None when it is not."""
    if limit.kind == "unfused":
        found, total = sum(not item.fused for item in audit.attention), len(audit.attention)
    else:
        found, total = audit.layer_precisions.get(limit.kind, 0), len(audit.layers)
    value = 100 * found / max(total, 1) if limit.is_percent else found
    if value <= limit.number:
        return None
    share = f" ({value:.1f} %)" if limit.is_percent else ""
    what = "attention is unfused" if limit.kind == "unfused" else f"layers are {limit.kind}"
    return f"{found} of {total} {what}{share}, more than {limit.number:g}{'%' if limit.is_percent else ''}"


def _first_block(layer: LayerAudit) -> str:
    return layer.blocks[0] if layer.blocks else _BY_BUILDER


def _join(blocks: Iterable[str]) -> str:
    """Name blocks that differ in one number: "decoder.layers.0 to 22.block"."""
    names = list(blocks)
    numbers = [int(match.group()) for name in names if (match := _NUMBER.search(name))]
    if len(names) == 1 or not numbers:
        return names[0]
    low, high = min(numbers), max(numbers)
    span = f"{low} to {high}" if high - low + 1 == len(names) else f"{low} .. {high}"
    return _NUMBER.sub(span, names[0], count=1)
