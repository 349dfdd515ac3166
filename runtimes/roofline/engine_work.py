"""One policy call as TensorRT computes it: fp16 where the manifest says so, attention in one kernel, launches as audited."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.engines import engine_folders, read_engine_folder
from rfedge.bundle.stages import graph_of_block
from rfedge.errors import ArtifactError
from rfedge.runtimes.roofline.work import MatMul, PolicyWork, Stage


@dataclass(frozen=True, slots=True)
class EngineShares:
    """Findings of the audits of one target's engines, all graphs together."""

    folder: str  # name of the target's folder
    graphs: tuple[str, ...]  # those that are built
    layers: dict[str, int]  # precision -> layers; each is a launch
    # num_attention, num_fused: attentions, and those that are one kernel
    num_attention: int
    num_fused: int

    @property
    def num_launches(self) -> int:
        return sum(self.layers.values())


def engine_shares(bundle: Bundle) -> tuple[EngineShares, ...]:
    """Return the audits of every target that has engines; those that an older rfedge built hold none."""
    found = []
    for folder in engine_folders(bundle):
        try:
            stages = read_engine_folder(folder).stages
        except ArtifactError:
            continue
        layers: dict[str, int] = {}
        for record in stages.values():
            for name, count in record.layers.items():
                layers[name] = layers.get(name, 0) + count
        if layers:
            attention, fused = (sum(getattr(record, name) for record in stages.values()) for name in _ATTENTION)
            found.append(EngineShares(folder.name, tuple(stages), layers, attention, fused))
    return tuple(found)


_ATTENTION = ("num_attention", "num_fused")


def engine_work(work: PolicyWork, bundle: Bundle) -> PolicyWork:
    """Return `work` with the floats of the engines and, where audits tell, their launches.

    Attention counts as fused in fp16 unless an audit found one that is not. Results of int8 MatMuls count as the graph has
    them, in fp32: up to 2 bytes a number too much.
    """
    audits = engine_shares(bundle)
    if audits:
        work = replace(work, operators=_audited(work, bundle, audits[0]))
    record = bundle.manifest.tensorrt
    if record is None:
        return work
    halves = {name for name, form in record.graphs.items() if form.floats == "fp16"}
    is_fused = all(shares.num_fused == shares.num_attention for shares in audits)

    def built(matmul: MatMul) -> MatMul:
        if matmul.stage == "preprocess" or matmul.arithmetic != "fp32":
            return matmul
        if graph_of_block(bundle.contract, matmul.block) not in halves:
            return matmul
        kept = matmul.logit_bytes if is_fused else 0
        is_wide = matmul.parameters > 0 and matmul.weight_bytes == 4 * matmul.parameters
        return replace(
            matmul,
            arithmetic="fp16",
            label="fp16" if matmul.label == "fp32" else matmul.label,
            weight_bytes=matmul.weight_bytes // 2 if is_wide else matmul.weight_bytes,
            activation_bytes=(matmul.activation_bytes - kept) // 2,
            logit_bytes=(matmul.logit_bytes - kept) // 2,
        )

    return replace(work, matmuls=tuple(map(built, work.matmuls)))


def _audited(work: PolicyWork, bundle: Bundle, shares: EngineShares) -> dict[Stage, int]:
    """Return the launches of engines that are built, spread over their stages as the graphs' operators are."""
    graph_of_stage = {matmul.stage: graph_of_block(bundle.contract, matmul.block) for matmul in work.matmuls}
    built = {stage: count for stage, count in work.operators.items() if graph_of_stage.get(stage) in shares.graphs}
    factor = shares.num_launches / max(sum(built.values()), 1)
    return {stage: round(count * factor) if stage in built else count for stage, count in work.operators.items()}
