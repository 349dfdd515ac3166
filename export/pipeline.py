"""Checkpoint -> bundle, step by step: trace, calibrate, quantize, audit, prove, package. Read this file first."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from safetensors.numpy import save_file

from rfedge.bundle import (
    Bundle,
    BundleWriter,
    CalibrationRecord,
    Manifest,
    ParityRecord,
    PrecisionRecord,
    load_bundle,
    write_bundle,
)
from rfedge.config import PolicyConfig, Precision, check_precision
from rfedge.contract import GraphContract, PolicyContract, policy_contract
from rfedge.data import CalvinDataset
from rfedge.errors import ArtifactError, ConfigError, GateError, explain
from rfedge.export.calibrate import (
    EpisodeFrame,
    FrameInputs,
    choose_calibration_frames,
    choose_proof_episodes,
    hash_frames,
)
from rfedge.export.parity import Episodes, compare_traces, graph_call, onnx_rollout, torch_rollout
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.quantize import Int8Options, quantize_int8
from rfedge.export.thresholds import THRESHOLDS, missed
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import Checkpoint, load_checkpoint
from rfedge.model.checkpoint import checkpoint_sha256

__all__ = [
    "ExportOptions",
    "StageProgress",
    "check_export",
    "export_checkpoint",
    "measure_parity",
    "proof_inputs",
    "verify_parity",
]

# (stage, steps done, steps in all); called at least once per stage
StageProgress = Callable[[str, int, int], None]

_VERSIONED = ("rfedge", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What `rfedge export` was asked for.

    Attributes:
        precision: "fp32" or "int8".
        data: CALVIN-format demonstrations; needed for int8, used for the proof when given.
        keep_float: beginnings of the names of blocks or modules that stay in fp32 when the rest is int8, `*` for anything;
            None keeps the few products that cost most accuracy and least time (`QUERY_ATTENTION`).
        int8: how ranges are chosen and weights rounded.
        num_calibration_frames: frames that set the int8 ranges.
        num_parity_steps: steps of the proof rollout, over all its episodes.
        seed: draws calibration frames, proof episodes and, without `data`, proof inputs.
        overwrite: replace an existing bundle.
    """

    precision: str
    data: Path | None = None
    keep_float: tuple[str, ...] | None = None
    int8: Int8Options = field(default_factory=Int8Options)
    num_calibration_frames: int = 128
    num_parity_steps: int = 64
    seed: int = 0
    overwrite: bool = False


def check_export(
    checkpoint_dir: Path, output: Path, options: ExportOptions
) -> tuple[Precision, Checkpoint, FrameInputs | None]:
    """Open and check everything an export needs, and write nothing.

    Raises:
        ConfigError, ArtifactError, DatasetError: as `export_checkpoint`.
    """
    precision = check_precision(options.precision)
    if output.exists() and not options.overwrite:
        raise ArtifactError(
            explain(
                str(output), got="an existing path", expected="a free name", remedy="Pass --overwrite or another --output."
            )
        )
    if precision == "int8" and options.data is None:
        raise ConfigError(
            explain(
                "precision int8",
                got="no demonstrations",
                expected="--data with CALVIN-format frames to calibrate on (synthetic calibration is refused)",
                remedy="Pass --data DIR, or export fp32.",
            )
        )
    checkpoint = load_checkpoint(checkpoint_dir)
    return precision, checkpoint, _open_frames(checkpoint, options.data)


def export_checkpoint(
    checkpoint_dir: Path, output: Path, options: ExportOptions, *, progress: StageProgress = lambda *_: None
) -> Bundle:
    """Write the bundle at `output` and return it, opened and verified.

    Raises:
        ConfigError: unknown precision, or int8 without demonstrations.
        ArtifactError: the checkpoint is damaged, or `output` exists.
        DatasetError: the demonstrations are damaged or empty.
        GateError: the exported policy misses a threshold; nothing is written, the text holds the numbers.
    """
    progress("load checkpoint", 0, 1)
    precision, checkpoint, frames = check_export(checkpoint_dir, output, options)
    config = checkpoint.config
    contract = policy_contract(config)
    rng = np.random.default_rng(options.seed)
    progress("load checkpoint", 1, 1)

    with write_bundle(output, overwrite=options.overwrite) as writer:
        _trace(checkpoint, contract, writer, progress)
        calibration_frames: list[EpisodeFrame] = []
        calibration = None
        backbone_path = writer.root / "backbone.onnx"
        if precision == "int8" and frames is not None:
            calibration_frames = choose_calibration_frames(
                frames.dataset, num_frames=options.num_calibration_frames, rng=rng
            )
            _quantize(backbone_path, frames, calibration_frames, options, progress)
            calibration = CalibrationRecord(
                dataset=_name(frames.dataset),
                method=options.int8.describe(),
                frames=tuple(calibration_frames),
                sha256=hash_frames(frames, calibration_frames),
            )
        graph = onnx.load(backbone_path, load_external_data=False)
        blocks = {**effective_precisions(graph), "head": "fp32"}

        episodes, described = proof_inputs(config, contract.backbone, frames, calibration_frames, options, rng)
        parity = measure_parity(
            checkpoint, backbone_path, writer.root / "head.onnx", episodes, described, precision, progress=progress
        )
        if not parity.passed:
            raise GateError(
                explain(
                    f"parity of the {precision} export",
                    got="; ".join(missed(parity.metrics, parity.thresholds)),
                    expected="every threshold met",
                    remedy="Train longer, calibrate on more frames, or export fp32; nothing was written.",
                )
            )
        progress("package", 0, 1)
        save_file({"embedding": _embedding(checkpoint)}, writer.add("embedding.safetensors", "embedding"))
        checkpoint.tokenizer.save(writer.add("tokenizer.json", "tokenizer"))
        writer.finish(
            Manifest(
                policy=config,
                contract=contract,
                precision=PrecisionRecord(requested=precision, blocks=blocks),
                calibration=calibration,
                parity=parity,
                source={"checkpoint_sha256": checkpoint_sha256(checkpoint_dir), "name": config.name},
                versions={name: version(name) for name in _VERSIONED} | {"python": platform.python_version()},
            )
        )
        progress("package", 1, 1)
    return load_bundle(output)


def _trace(checkpoint: Checkpoint, contract: PolicyContract, writer: BundleWriter, progress: StageProgress) -> None:
    progress("trace", 0, 2)
    for path in trace_backbone(checkpoint.policy, contract.backbone, writer.add("backbone.onnx", "backbone"))[1:]:
        writer.add(path.name, "weights")
    progress("trace", 1, 2)
    for path in trace_head(checkpoint.policy, contract.head, writer.add("head.onnx", "head"))[1:]:
        writer.add(path.name, "weights")
    progress("trace", 2, 2)


def _quantize(
    path: Path, frames: FrameInputs, chosen: Sequence[EpisodeFrame], options: ExportOptions, progress: StageProgress
) -> None:
    """Replace the graph at `path` by its int8 form and make sure that the runtime uses integer kernels for it."""
    progress("calibrate", 0, len(chosen))
    inputs = frames.stream(chosen) if frames.config.media_frames == 1 else frames.with_history(chosen, graph_call(path))
    num_products = quantize_int8(path, path, inputs, keep_float=options.keep_float, options=options.int8, progress=progress)
    progress("audit kernels", 0, 1)
    require_integer_kernels(path, num_expected=num_products)
    progress("audit kernels", 1, 1)


def proof_inputs(
    config: PolicyConfig,
    contract: GraphContract,
    frames: FrameInputs | None,
    avoid: Sequence[EpisodeFrame],
    options: ExportOptions,
    rng: np.random.Generator,
) -> tuple[Episodes, str]:
    if frames is None:
        inputs: list[dict[str, npt.NDArray[Any]]] = [contract.sample_inputs(rng) for _ in range(options.num_parity_steps)]
        return [inputs], f"random frames, seed {options.seed}"
    pairs = choose_proof_episodes(
        frames.dataset, num_steps=options.num_parity_steps, frame_stride=config.frame_stride, avoid=avoid, rng=rng
    )
    shared = {segment for segment, _ in avoid} & {segment for episode in pairs for segment, _ in episode}
    described = f"{len(pairs)} demonstration episodes of {_name(frames.dataset)}"
    if avoid:
        described += f", {len(shared)} of them also used in calibration"
    return [list(frames.stream(episode)) for episode in pairs], described


def measure_parity(
    checkpoint: Checkpoint,
    backbone: Path,
    head: Path,
    episodes: Episodes,
    described: str,
    precision: Precision,
    *,
    progress: StageProgress = lambda *_: None,
) -> ParityRecord:
    """Roll PyTorch and the two graphs through the same episodes and judge the differences by `THRESHOLDS[precision]`."""
    num_steps = sum(len(episode) for episode in episodes)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress("prove", done, 2 * num_steps)

    progress("prove", 0, 2 * num_steps)
    reference = torch_rollout(checkpoint.policy, episodes, on_step=count)
    candidate = onnx_rollout(checkpoint.config, backbone, head, episodes, on_step=count)
    metrics = compare_traces(reference, candidate)
    thresholds = THRESHOLDS[precision]
    return ParityRecord(
        num_steps=num_steps, inputs=described, metrics=metrics, thresholds=thresholds, passed=not missed(metrics, thresholds)
    )


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
    checkpoint = load_checkpoint(checkpoint_dir)
    expected = bundle.manifest.source["checkpoint_sha256"]
    actual = checkpoint_sha256(checkpoint_dir)
    if actual != expected:
        raise ArtifactError(
            explain(
                f"checkpoint {checkpoint_dir}",
                got=f"weights with sha256 {actual[:12]}",
                expected=f"{expected[:12]}, which {bundle.root} was made from",
                remedy="Give the checkpoint of this bundle.",
            )
        )
    precision = check_precision(bundle.manifest.precision.requested)
    options = ExportOptions(precision=precision, data=data, num_parity_steps=num_steps, seed=seed)
    frames = _open_frames(checkpoint, data)
    calibration = bundle.manifest.calibration
    avoid = [] if calibration is None else list(calibration.frames)
    episodes, described = proof_inputs(
        checkpoint.config, bundle.contract.backbone, frames, avoid, options, np.random.default_rng(seed)
    )
    parity = measure_parity(
        checkpoint, bundle.path("backbone"), bundle.path("head"), episodes, described, precision, progress=progress
    )
    if not parity.passed:
        raise GateError(
            explain(
                f"parity of {bundle.root}",
                got="; ".join(missed(parity.metrics, parity.thresholds)),
                expected="every threshold met",
                remedy="Do not deploy it; export it again.",
            )
        )
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"parity": parity}))


def _embedding(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """Return the token table, float32 (vocab, width)."""
    table: npt.NDArray[np.float32] = checkpoint.policy.embedding.weight.detach().numpy()
    return table


def _open_frames(checkpoint: Checkpoint, data: Path | None) -> FrameInputs | None:
    """Open demonstrations as this checkpoint's backbone inputs; None where there are none."""
    if data is None:
        return None
    return FrameInputs(checkpoint.config, CalvinDataset.open(data), checkpoint.tokenizer, _embedding(checkpoint))


def _name(dataset: CalvinDataset) -> str:
    """Return the last two folders, such as "demonstrations/training": a name for the record, not a machine's path."""
    return "/".join(dataset.folder.resolve().parts[-2:])
