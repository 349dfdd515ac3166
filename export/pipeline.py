"""Checkpoint -> bundle, step by step: graphs, proof, package. Read this file first."""

from __future__ import annotations

import dataclasses
import functools
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.bundle.artifact import (
    Bundle,
    CalibrationRecord,
    Manifest,
    ParityRecord,
    PrecisionRecord,
    load_bundle,
    write_bundle,
)
from rfedge.bundle.gates import missed
from rfedge.bundle.precision import BlockPrecision
from rfedge.bundle.stages import StagePrecisions, parse_precisions
from rfedge.bundle.traces import save_proof
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError, ConfigError, GateError, one_of
from rfedge.export.calibrate import EpisodeFrame, FrameInputs, choose_calibration_frames, hash_frames
from rfedge.export.graphs import CALIBRATED, GraphSettings, describe_calibration, write_graphs
from rfedge.export.language import choose_sentences, stored_words, write_language
from rfedge.export.mixed.record import draw_sensitivity
from rfedge.export.mixed.search import MixedSearch
from rfedge.export.options import HEAD_PRECISIONS, STAGES, ExportOptions
from rfedge.export.parity import torch_rollout
from rfedge.export.proof import Proof, count_steps, open_frames, proof_inputs, short_name
from rfedge.export.tensorrt.engine_proof import EngineGraphs, choose_forms, prove_engines
from rfedge.export.thresholds import mixed_thresholds
from rfedge.export.words import words_before_media
from rfedge.io.disk import check_room
from rfedge.io.plotting import check_matplotlib
from rfedge.jobs.progress import StageProgress
from rfedge.model import Checkpoint, checkpoint_sha256, load_checkpoint

# What a proof says it was of, where the CPU form computes more in int8 than the Q/DQ graph.
IN_ROWS: Final = "query attention in int8 by row, on CPUs"
_VERSIONED = ("rfedge", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
_WORK = ".work"
_FLOAT_BYTES = 4  # every export traces the policy in float32 first
_NEEDS_FRAMES = ("int8", "mixed")


def check_export(
    checkpoint_dir: Path, output: Path, options: ExportOptions, *, data_follows: bool = False
) -> tuple[StagePrecisions, Checkpoint, FrameInputs | None]:
    """Open and check everything an export needs, and write nothing; `data_follows` says that `data` is not there yet."""
    one_of(STAGES, options.stages, "--stages", remedy="two cuts the backbone into vision and decoder.")
    one_of(HEAD_PRECISIONS, options.head_precision, "--head-precision", remedy="int8 stores the head's weights in 8 bits.")
    precisions = parse_precisions(options.precision, two_stages=options.stages == "two")
    precision, kinds = precisions.requested, precisions.graphs.values()
    if output.exists() and not options.overwrite:
        raise ArtifactError(
            str(output), got="an existing path", expected="a free name", remedy="Pass --overwrite or another --output."
        )
    if (precision == "mixed") != (options.budget is not None):
        raise ConfigError(
            f"precision {precision}",
            got="no --budget" if options.budget is None else "a --budget",
            expected="a --budget for mixed, and for mixed only",
            remedy="Such as --precision mixed --budget action_error=0.01.",
        )
    if options.data is None and not data_follows and any(kind in _NEEDS_FRAMES for kind in kinds):
        expected = "--data with CALVIN-format frames to calibrate on (synthetic calibration is refused)"
        remedy = "Pass --data DIR, or export fp32."
        raise ConfigError(f"precision {precision}", got="no demonstrations", expected=expected, remedy=remedy)
    if options.chart is not None:
        if precision != "mixed":
            raise ConfigError(
                "--chart", got=f"precision {precision}", expected="mixed", remedy="Only mixed has evidence to draw."
            )
        check_matplotlib("--chart")
    checkpoint = load_checkpoint(checkpoint_dir)
    half = checkpoint.config.vision.num_patches // 2
    if options.merge_tokens > half:
        expected, remedy = f"at most {half}, half of the patches of an image", "Merge fewer."
        raise ConfigError("--merge-tokens", got=options.merge_tokens, expected=expected, remedy=remedy)
    num_weights = sum(parameter.numel() for parameter in checkpoint.policy.parameters())
    check_room(output, _FLOAT_BYTES * num_weights, what="the float graphs and the bundle")
    frames = open_frames(checkpoint, options.data)
    if not data_follows:
        _sentences(checkpoint, frames, options)
    return precisions, checkpoint, frames


def _sentences(checkpoint: Checkpoint, frames: FrameInputs | None, options: ExportOptions) -> tuple[str, ...] | None:
    return choose_sentences(options.instructions, checkpoint.tokenizer, None if frames is None else frames.dataset)


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
    precisions, checkpoint, frames = check_export(checkpoint_dir, output, options)
    config = checkpoint.config
    contract = policy_contract(config, two_stages=options.stages == "two")
    rng = np.random.default_rng(options.seed)
    progress("load checkpoint", 1, 1)

    with write_bundle(output, overwrite=options.overwrite) as writer:
        words = None if options.instructions is None else words_before_media(checkpoint.policy)
        stored_as = stored_words(config.decoder, precisions.text, are_states=words is not None)
        write_language(checkpoint, stored_as, _sentences(checkpoint, frames, options), writer, words)
        read_frames = frames if frames is None else dataclasses.replace(frames, words=words)  # as the graphs read them
        training = checkpoint.metadata
        # Full-size weights are dropped before something else of their size is loaded, but for the blocks of `words`.
        del checkpoint
        chosen: list[EpisodeFrame] = []
        calibration = None
        if frames is not None and any(kind in CALIBRATED for kind in precisions.graphs.values()):
            chosen = choose_calibration_frames(frames.dataset, num_frames=options.num_calibration_frames, rng=rng)
            calibration = CalibrationRecord(
                dataset=short_name(frames.dataset),
                method=describe_calibration(precisions.graphs.values(), options.int8),
                frames=tuple(chosen),
                sha256=hash_frames(frames, chosen),
            )
        work = writer.root / _WORK
        work.mkdir()
        search = None
        if options.budget is not None:
            # Twice the steps of the proof, sampled for themselves: a plan is not proved on what it was chosen by alone.
            own_rng, num_steps = np.random.default_rng([options.seed, 1]), 2 * options.num_parity_steps
            seen, _ = proof_inputs(config, read_frames, chosen, num_steps=num_steps, seed=options.seed, rng=own_rng)
            folder = output.with_name(output.name + ".search")
            search = MixedSearch(options.budget, seen, folder, options.keep_float or ())
        words_blocks = 0 if words is None else words.num_blocks
        settings = GraphSettings(precisions, options, read_frames, chosen, search, words_blocks)
        graphs = write_graphs(checkpoint_dir, contract, writer.root, settings, work=work, progress=progress)
        blocks: dict[str, BlockPrecision] = {}
        for graph in graphs.values():
            blocks |= graph.blocks
            for name, role in graph.files.items():
                writer.add(name, role)
        run_here = {name: graph.runs_here for name, graph in graphs.items()}
        in_rows = [graph.in_rows for graph in graphs.values() if graph.in_rows is not None]
        episodes, described = proof_inputs(
            config, frames, chosen, num_steps=options.num_parity_steps, seed=options.seed, rng=rng
        )
        described += "".join(f"; {graph.emulated_by}" for graph in graphs.values() if graph.emulated_by)
        engines = None
        if set(precisions.graphs.values()) != {"fp32"}:
            written = {name: writer.root / f"{name}.onnx" for name in graphs}
            engines = EngineGraphs(config, written, precisions.graphs, {**run_here, "head": written["head"]})
        thresholds = mixed_thresholds(options.budget.metric, options.budget.limit) if options.budget else None
        proof = Proof(
            config, precisions, episodes, described, words, settings.head_is_int8, options.merge_tokens, thresholds
        )
        count = count_steps(progress, (2 if engines is None else 3) * proof.num_steps)
        reference = torch_rollout(load_checkpoint(checkpoint_dir).policy, episodes, on_step=count)
        *backbone, head = run_here.values()
        prove = functools.partial(proof.measure, reference, backbone, head)
        parity = prove(f"; {IN_ROWS}" if in_rows else "", on_step=count)
        if in_rows and not parity.passed:
            for rows in in_rows:
                blocks |= rows.leave_floats()
            parity = prove(on_step=lambda: None)
        stored = proof.stored()
        save_proof(writer.add("proof.npz", "proof"), stored, reference)
        tensorrt = None
        if engines is not None:
            seen = (
                stored
                if read_frames is None or not chosen
                else [[inputs] for inputs in read_frames.stream(chosen[:: len(chosen) // 32 or 1])]
            )
            forms = choose_forms(engines, seen, work)
            tensorrt = prove_engines(engines, forms, reference, stored, described, parity.thresholds, work, on_step=count)
        shutil.rmtree(work)
        num_actions = parity.num_steps * config.chunk_size
        parity = _judge(parity, precisions.requested, num_actions, force=options.force)
        progress("package", 0, 1)
        writer.finish(
            Manifest(
                policy=config,
                contract=contract,
                precision=PrecisionRecord(requested=precisions.requested, blocks=blocks),
                merge_tokens=options.merge_tokens,
                words_blocks=words_blocks,
                calibration=calibration,
                parity=parity,
                tensorrt=tensorrt,
                source={"checkpoint_sha256": checkpoint_sha256(checkpoint_dir), "name": config.name}
                | ({} if options.data_description is None else {"demonstrations": options.data_description}),
                training=training,
                versions={name: version(name) for name in _VERSIONED} | {"python": platform.python_version()},
            )
        )
        progress("package", 1, 1)
    found = next((graph.search for graph in graphs.values() if graph.search is not None), None)
    if found is not None and options.chart is not None:
        draw_sensitivity(found, options.chart)
    return load_bundle(output)


def _judge(parity: ParityRecord, precision: str, num_actions: int, *, force: bool) -> ParityRecord:
    if parity.passed:
        return parity
    if force:
        return parity.model_copy(update={"forced": True})
    got = "; ".join(missed(parity.metrics, parity.thresholds, num_actions=num_actions))
    remedy = "Train longer, calibrate on more frames, or export fp32; nothing was written. --force writes it anyway."
    raise GateError(f"parity of the {precision} export", got=got, expected="every threshold met", remedy=remedy)
