"""The unit that everything here counts in: one MatMul (MatMul, convolution or LSTM) of one policy call.

MatMuls are all that takes time in this family: everything else is elementwise or a row's norm, and a runtime fuses it
into the MatMul beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from rfedge.bundle.precision import BlockPrecision

Arithmetic = Literal["fp32", "fp16", "bf16", "int8"]
Stage = Literal["preprocess", "vision", "resampler", "decoder", "head"]
STAGES: Final[tuple[Stage, ...]] = ("preprocess", "vision", "resampler", "decoder", "head")


@dataclass(frozen=True, slots=True)
class MatMul:
    block: str  # a PyTorch block, see `rfedge.bundle.block_names`
    macs: int  # multiply-accumulates; one is two operations
    arithmetic: Arithmetic  # what both factors are when they are multiplied
    # precision as reports name it: the arithmetic or, where only the weights are stored smaller, for instance "int4-weight"
    label: str
    parameters: int  # trained numbers of its weight; 0 when it multiplies two activations
    weight_bytes: int  # as stored, scales of quantized weights included
    activation_bytes: int  # what it reads besides the weight, and what it writes
    logit_bytes: int = 0  # of these, attention's logits or probabilities: a kernel that fuses attention keeps them to itself

    @property
    def stage(self) -> Stage:
        return stage_of_block(self.block)


@dataclass(frozen=True, slots=True)
class Sums:
    """Totals over some MatMuls, with norms and biases of the same blocks among the parameters and weight bytes."""

    parameters: int
    macs: int
    macs_by_arithmetic: dict[Arithmetic, int]
    weight_bytes: int
    activation_bytes: int
    # read and written in one policy call when every elementwise operation is fused and nothing stays in a cache: the lower
    # bound that a roofline uses
    traffic_bytes: int
    label: str

    @property
    def operations(self) -> int:
        """Two a multiply-accumulate, as data sheets count."""
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        """Operations per byte of traffic; 0 without traffic."""
        return self.operations / self.traffic_bytes if self.traffic_bytes else 0.0


@dataclass(frozen=True, slots=True)
class PolicyWork:
    """All MatMuls of one policy call."""

    matmuls: tuple[MatMul, ...]
    vectors: dict[str, tuple[int, int]]  # block -> (elements, bytes) of its norms and biases
    head_steps: int  # features behind one action: the window, or 1 where a state is carried
    embedding_bytes: int = 0  # token table, read once an instruction and not in a policy call
    table_bytes: int = 0  # everything else stored with the graphs: positions, latents, masks
    # stage -> operators that a runtime which fuses nothing launches, MatMuls included
    operators: Mapping[Stage, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = field(default_factory=tuple)  # operators whose cost is unknown, by name

    def stage(self, stage: Stage) -> Sums:
        return self._sums(lambda block: stage_of_block(block) == stage)

    def blocks(self) -> dict[tuple[Stage, str], Sums]:
        """Return the sums of every block, in the order in which a call reaches them."""
        names = dict.fromkeys((matmul.stage, matmul.block) for matmul in self.matmuls)
        return {
            name: self._sums(name[1].__eq__)  # a block lies in one stage
            for name in sorted(names, key=lambda name: STAGES.index(name[0]))
        }

    def total(self) -> Sums:
        return self._sums(lambda _: True)

    @property
    def memory_bytes(self) -> int:
        """Least memory that holds the policy: weights, tables, the token table and the largest activation traffic."""
        largest = max((matmul.activation_bytes for matmul in self.matmuls), default=0)
        return self.total().weight_bytes + self.table_bytes + self.embedding_bytes + largest

    def _sums(self, wanted: Callable[[str], bool]) -> Sums:
        chosen = [matmul for matmul in self.matmuls if wanted(matmul.block)]
        return sum_matmuls(chosen, [counts for block, counts in self.vectors.items() if wanted(block)])


def stage_of_block(block: str) -> Stage:
    """Return the stage that reports a block: cameras, patch tokens, latents, text and fusion, or memory and action."""
    first = block.split(".")[0]
    for prefix, stage in _STAGE_PREFIXES.items():
        if first.startswith(prefix):
            return stage
    return "decoder"  # the fusion's own parts: pooling, proprioception


_STAGE_PREFIXES: Final[dict[str, Stage]] = {
    "preprocess": "preprocess",
    "vision": "vision",
    "resampler": "resampler",
    "frame_embedding": "resampler",
    "head": "head",
}


def sum_matmuls(matmuls: Iterable[MatMul], vectors: Iterable[tuple[int, int]] = ()) -> Sums:
    """Add up MatMuls and (elements, bytes) of vectors."""
    matmuls, vectors = list(matmuls), list(vectors)
    by_arithmetic: Counter[Arithmetic] = Counter()
    for matmul in matmuls:
        by_arithmetic[matmul.arithmetic] += matmul.macs
    vector_bytes = sum(size for _, size in vectors)
    activation_bytes = sum(matmul.activation_bytes for matmul in matmuls)
    return Sums(
        parameters=sum(matmul.parameters for matmul in matmuls) + sum(elements for elements, _ in vectors),
        macs=sum(matmul.macs for matmul in matmuls),
        macs_by_arithmetic=dict(by_arithmetic),
        weight_bytes=sum(matmul.weight_bytes for matmul in matmuls) + vector_bytes,
        activation_bytes=activation_bytes,
        traffic_bytes=sum(matmul.weight_bytes for matmul in matmuls) + vector_bytes + activation_bytes,
        label=label_of(matmul.label for matmul in matmuls if matmul.weight_bytes),
    )


def label_of(labels: Iterable[str]) -> str:
    """Return the precision of MatMuls with weights: "int8", or "int8 (3 of 4 MatMuls)" where some stayed in float."""
    labels = list(labels)
    return str(BlockPrecision.count(labels)) if labels else "-"
