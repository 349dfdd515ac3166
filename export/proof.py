"""Proof of a bundle: the PyTorch policy and the bundle's graphs on the same demonstrations, against thresholds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rfedge.arrays import Array, Float32
from rfedge.bundle.artifact import Bundle, ParityRecord
from rfedge.bundle.gates import missed
from rfedge.bundle.stages import StagePrecisions, parse_precisions
from rfedge.bundle.traces import Episodes, RolloutTrace, compare_traces
from rfedge.config import PolicyConfig, Precision
from rfedge.contract import policy_contract
from rfedge.data import CalvinDataset
from rfedge.errors import ArtifactError, GateError
from rfedge.export.calibrate import EpisodeFrame, FrameInputs, choose_proof_episodes
from rfedge.export.graphs import graph_to_prove
from rfedge.export.language import stored_words
from rfedge.export.parity import onnx_rollout, torch_rollout
from rfedge.export.thresholds import FROM_STRICTEST, THRESHOLDS, loosest_thresholds
from rfedge.export.words import Words, words_before_media
from rfedge.jobs.progress import StageProgress
from rfedge.model import Checkpoint, checkpoint_sha256, load_checkpoint
from rfedge.robot.conventions import refuse_disagreement


def proof_inputs(
    config: PolicyConfig,
    frames: FrameInputs | None,
    avoid: Sequence[EpisodeFrame],
    *,
    num_steps: int,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Episodes, str]:
    """Return the episodes of a proof and one line that says what they are; without demonstrations, random frames."""
    if frames is None:
        contract = policy_contract(config).backbone
        inputs: list[dict[str, Array]] = [contract.sample_inputs(rng) for _ in range(num_steps)]
        return [inputs], f"random frames, seed {seed}"
    pairs = choose_proof_episodes(
        frames.dataset, num_steps=num_steps, frame_stride=config.frame_stride, avoid=avoid, rng=rng
    )
    shared = {segment for segment, _ in avoid} & {segment for episode in pairs for segment, _ in episode}
    described = f"{len(pairs)} demonstration episodes of {short_name(frames.dataset)}"
    if avoid:
        described += f", {len(shared)} of them also used in calibration"
    return [list(frames.stream(episode)) for episode in pairs], described


@dataclass(frozen=True, slots=True)
class Proof:
    """What PyTorch and the graphs of a bundle are compared on, and where the bundle is another policy than PyTorch's."""

    config: PolicyConfig
    precisions: StagePrecisions
    episodes: Episodes  # as PyTorch sees them
    described: str  # one line on them
    words: Words | None  # blocks that were run on the bundle's sentences; None where it stores tokens
    head_is_int8: bool
    merge_tokens: int
    thresholds: dict[str, float] | None  # without any the loosest of the precisions, the head's included

    @property
    def num_steps(self) -> int:
        return sum(map(len, self.episodes))

    def stored(self) -> Episodes:
        """Return the episodes as a robot sees them: of its instructions what the bundle stores."""
        table = stored_words(self.config.decoder, self.precisions.text, are_states=self.words is not None)

        def stored(embedding: Array) -> Float32:
            return table.as_stored(embedding if self.words is None else self.words(embedding))

        return [
            [{**inputs, "text_embedding": stored(inputs["text_embedding"])} for inputs in episode]
            for episode in self.episodes
        ]

    def measure(
        self, reference: RolloutTrace, backbone: Sequence[Path], head: Path, note: str = "", *, on_step: Callable[[], None]
    ) -> ParityRecord:
        """Roll the graphs through the episodes and check their differences from PyTorch's `reference`."""
        described, thresholds = self.described + note, self.thresholds
        metrics = compare_traces(reference, onnx_rollout(self.config, backbone, head, self.stored(), on_step=on_step))
        if thresholds is None:
            used: set[Precision] = {*self.precisions.graphs.values(), *(("int8",) if self.head_is_int8 else ())}
            if self.merge_tokens:  # PyTorch merges none, so such a graph is checked against the loosest gates of all
                used.add(FROM_STRICTEST[-1])
                described += f"; {self.merge_tokens} tokens merged in each layer, none in PyTorch"
            lowest = loosest_thresholds(used)
            thresholds = THRESHOLDS[lowest]
            if len(used) > 1:
                described += f"; checked against the gates of {lowest}"
        passed = not missed(metrics, thresholds)
        return ParityRecord(
            num_steps=self.num_steps, inputs=described, metrics=metrics, thresholds=thresholds, passed=passed
        )


def count_steps(progress: StageProgress, num_steps: int) -> Callable[[], None]:
    """Return what reports one more of `num_steps` steps of a proof each time that it is called."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress("prove", done, num_steps)

    progress("prove", 0, num_steps)
    return count


def verify_parity(
    bundle: Bundle,
    checkpoint_dir: Path,
    *,
    data: Path | None,
    num_steps: int,
    seed: int,
    progress: StageProgress = lambda *_: None,
) -> Bundle:
    """Measure a finished bundle against its checkpoint again; the bundle returned carries the new record.

    Raises:
        ArtifactError: the checkpoint is not the one that the bundle was made from.
        GateError: a threshold is missed.
    """
    expected = bundle.manifest.source["checkpoint_sha256"]
    actual = checkpoint_sha256(checkpoint_dir)
    if actual != expected:
        raise ArtifactError(
            f"checkpoint {checkpoint_dir}",
            got=f"weights with sha256 {actual[:12]}",
            expected=f"{expected[:12]}, which {bundle.root} was made from",
            remedy="Give the checkpoint of this bundle.",
        )
    precisions = parse_precisions(bundle.manifest.precision.requested, two_stages=bool(bundle.contract.backbone_stages))
    checkpoint, manifest = load_checkpoint(checkpoint_dir), bundle.manifest
    frames = open_frames(checkpoint, data)
    avoid = [] if manifest.calibration is None else list(manifest.calibration.frames)
    rng = np.random.default_rng(seed)
    episodes, described = proof_inputs(checkpoint.config, frames, avoid, num_steps=num_steps, seed=seed, rng=rng)
    words = words_before_media(checkpoint.policy) if manifest.words_blocks else None
    del checkpoint, frames
    with tempfile.TemporaryDirectory() as folder:
        graphs = []
        for name, graph in bundle.backbone_graphs(for_cpu=True).items():
            to_prove, emulated_by = graph_to_prove(name, graph, precisions.graphs[name], work=Path(folder))
            graphs.append(to_prove)
            described += f"; {emulated_by}" if emulated_by else ""
        count = count_steps(progress, 2 * num_steps)
        thresholds = manifest.parity.thresholds if precisions.requested == "mixed" else None
        head_is_int8, merged = bundle.has("head-cpu"), manifest.merge_tokens
        proof = Proof(bundle.policy, precisions, episodes, described, words, head_is_int8, merged, thresholds)
        reference = torch_rollout(load_checkpoint(checkpoint_dir).policy, episodes, on_step=count)
        parity = proof.measure(reference, graphs, bundle.graph("head", for_cpu=True), on_step=count)
    if not parity.passed:
        got = "; ".join(missed(parity.metrics, parity.thresholds, num_actions=num_steps * bundle.policy.chunk_size))
        remedy = "Do not deploy it; export it again."
        raise GateError(f"parity of {bundle.root}", got=got, expected="every threshold met", remedy=remedy)
    return Bundle(bundle.root, manifest.model_copy(update={"parity": parity}))


def open_frames(checkpoint: Checkpoint, data: Path | None) -> FrameInputs | None:
    """Open demonstrations as this checkpoint's backbone inputs; None where there are none."""
    if data is None:
        return None
    table: Float32 = checkpoint.policy.embedding.weight.detach().numpy()
    dataset = CalvinDataset.open(data)
    refuse_disagreement(f"demonstrations {data}", dataset.conventions, "the checkpoint", checkpoint.config.conventions)
    return FrameInputs(checkpoint.config, dataset, checkpoint.tokenizer, table)


def short_name(dataset: CalvinDataset) -> str:
    """Return the last two folders, such as "demonstrations/training": a name for the record, not a machine's path."""
    return "/".join(dataset.folder.resolve().parts[-2:])
