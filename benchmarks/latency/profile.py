"""Where a policy call's time goes: milliseconds per kind of operator and per block, beside what the machine's limit allows.

An operator belongs to the PyTorch block that its node in the graph came from; one that the backend made of several and
renamed belongs where the one before it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.block_names import UNNAMED
from rfedge.records.record import Record
from rfedge.runtimes.backends.base import NodeTime
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.roofline.devices import Device
from rfedge.runtimes.roofline.graph_work import bundle_work, read_graph, traced_block
from rfedge.runtimes.roofline.roofline import limit_ms
from rfedge.runtimes.roofline.work import STAGES, Stage, stage_of_block

_CALLS: Final = 20


class OperatorTime(Record):
    """All operators of one kind, as the backend calls it."""

    kind: str
    count: int
    ms: float


class BlockTime(Record):
    """One block, or one stage of them."""

    name: str
    ms: float
    limit_ms: float | None  # the machine's limit for its MatMuls; None for a block without any
    share: float | None  # of the limit that is reached, limit_ms / ms


class CallProfile(Record):
    """One policy call of one variant, operator by operator; profiling itself takes some microseconds an operator."""

    variant: str
    calls: int
    ms: float
    operators: tuple[OperatorTime, ...]
    stages: tuple[BlockTime, ...]
    blocks: tuple[BlockTime, ...]
    # int8_ops, fp32_flops, bandwidth_bytes: per second, measured before; what the limits are of
    int8_ops: float
    fp32_flops: float
    bandwidth_bytes: float
    limit_of: str  # the machine, its threads, and whether others computed there


def profile_policy(name: str, policy: EdgePolicy, bundle: Bundle, device: Device, instruction: str) -> CallProfile | None:
    """Profile one variant; None where its backend does not tell."""
    text = policy.parts.encoder(instruction)
    rng = np.random.default_rng(0)
    inputs: Mapping[str, npt.NDArray[Any]] = {
        **policy.parts.contract.backbone.sample_inputs(rng, dynamic_size=text.mask.shape[1]),
        "text_embedding": text.embedding,
        "text_mask": text.mask,
    }
    backbone = policy.parts.backbone.profile(inputs, _CALLS)
    state = policy.parts.contract.head.sample_inputs(rng, dynamic_size=policy.config.window)
    head = policy.parts.head.profile(state, _CALLS)
    if backbone is None or head is None:
        return None
    work = bundle_work(bundle, text_tokens=text.mask.shape[1])
    limits = {block: limit_ms(sums, device) for (_, block), sums in work.blocks().items()}
    graphs = [*bundle.backbone_graphs(for_cpu=True).values(), *bundle.backbone_graphs(for_cpu=False).values()]
    modules = {block.split(".")[0] for block in limits}
    times = _by_block(backbone, {key: block for key, block in _blocks_of(graphs).items() if block.split(".")[0] in modules})
    times["head"] = times.get("head", 0.0) + sum(node.ms for node in head)
    of_stage: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
    for block, ms in times.items():
        of_stage[stage_of_block(block)] += ms
    stages = [(stage, ms, limit_ms(work.stage(stage), device)) for stage, ms in of_stage.items() if ms]
    return CallProfile(
        variant=name,
        calls=_CALLS,
        ms=sum(times.values()),
        operators=_by_kind([*backbone, *head]),
        stages=tuple(_block_time(stage, ms, limit or None) for stage, ms, limit in stages),
        blocks=tuple(_block_time(block, ms, limits.get(block)) for block, ms in times.items()),
        int8_ops=device.rate("int8")[1],
        fp32_flops=device.rate("fp32")[1],
        bandwidth_bytes=device.bandwidth,
        limit_of=device.source,
    )


def _block_time(name: str, ms: float, limit_ms: float | None) -> BlockTime:
    return BlockTime(name=name, ms=ms, limit_ms=limit_ms, share=None if limit_ms is None or not ms else limit_ms / ms)


def _blocks_of(graphs: Iterable[Path]) -> dict[str, str]:
    """Return node, or tensor that a node writes -> block, of the graphs of one backbone in all their forms."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(graphs):
        for node in read_graph(path).node:
            block = traced_block(node)
            if block != UNNAMED:
                for key in (node.name, *node.output):
                    found.setdefault(key, block)
    return found


def _by_block(nodes: Iterable[NodeTime], block_of: Mapping[str, str]) -> dict[str, float]:
    times: dict[str, float] = {}
    block = "preprocess"
    for node in nodes:
        block = _block(node.name, block_of) or block
        times[block] = times.get(block, 0.0) + node.ms
    return times


def _block(name: str, block_of: Mapping[str, str]) -> str | None:
    """Return the block of a node, whose backend may have put words behind its name."""
    stem = name
    while stem:
        if stem in block_of:
            return block_of[stem]
        cut = max(stem.rfind(mark) for mark in "/_:.")
        stem = stem[: max(cut, 0)]
    return None


def _by_kind(nodes: Iterable[NodeTime]) -> tuple[OperatorTime, ...]:
    times: dict[str, list[float]] = {}
    for node in nodes:
        times.setdefault(node.kind, []).append(node.ms)
    kinds = [OperatorTime(kind=kind, count=len(each), ms=sum(each)) for kind, each in times.items()]
    return tuple(sorted(kinds, key=lambda item: -item.ms))
