"""Open-loop scores on recorded episodes: the score of a policy for which there is no simulator.

The recorded frames are given to the policy at its own stride, whatever it answers. A low error is necessary for success and
not enough: where the policy's own mistakes lead shows in closed loop alone (`rfedge bench success`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.contract import ActionSemantics
from rfedge.data import CalvinDataset, Segment
from rfedge.data.calvin import find_split
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import split_segments
from rfedge.errors import DatasetError
from rfedge.io.plotting import check_matplotlib, save_figure
from rfedge.jobs.progress import StageProgress
from rfedge.messages import POSE_SIZE
from rfedge.policies import bundle_name, find_bundle
from rfedge.records.machine import Machine, describe_machine
from rfedge.records.plan import Option, Uses
from rfedge.records.record import Record
from rfedge.records.statistics import Mean, mean_with_interval
from rfedge.robot.conventions import refuse_disagreement
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import BACKENDS, DEFAULT_BACKEND
from rfedge.runtimes.control.controllers import SYNCHRONOUS_MODES, choose_loop
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.rollout.policy_source import PolicyLoop
from rfedge.runtimes.rollout.recorded_episode import RecordedFrames, recorded_actions

_QUANTILES: Final = (0.0, 0.5, 1.0)  # of the errors, of the episodes that are plotted
# (step, 7) each, one per episode
Episodes = Sequence[npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class EpisodesPlan:
    bundles: Annotated[
        tuple[Path, ...],
        Option(
            "Bundle folders or shipped policies; the first is what the others are compared with.",
            argument=True,
            parse=find_bundle,
        ),
    ]
    data: Annotated[Path, Option("Demonstrations in CALVIN's format.", panel="Episodes")]  # root or one split
    split: Annotated[str | None, Option("training or validation; default: validation where there is one.")] = None
    # as given to `rfedge train`, whose held-out episodes these are; a validation split is used whole
    validation_fraction: Annotated[
        float, Option("Share that `rfedge train` held out of the training split; 0 measures all of it.")
    ] = 0.1
    seed: Annotated[int, Option("Of that training, which decides what was held out.")] = 0
    num_episodes: Annotated[int, Option("Episodes at most, evenly spaced.", flag="--num", min=1)] = 50
    mode: Annotated[
        str | None,
        Option(
            "closed-loop, open-loop or jump-step; default: what fits the steps and the training.",
            panel="Policies",
            choices=SYNCHRONOUS_MODES,
        ),
    ] = None
    execute_steps: Annotated[int | None, Option("Actions played per policy call.", min=1)] = None
    backend: Annotated[str, Option("Backend of the bundles: onnxruntime, openvino or tensorrt.", choices=BACKENDS)] = (
        DEFAULT_BACKEND
    )
    settings: Annotated[
        RuntimeSettings, Uses("providers", threads="Threads of a policy in each worker; 0 is the backend's own choice.")
    ] = field(default_factory=lambda: RuntimeSettings(threads=1))


class ActionScore(Record):
    """Predicted against recorded actions: means over the steps of an episode, then over episodes, with their interval."""

    action_error: Mean  # mean absolute error of the six pose numbers in normalised units (1.0 is the policy's scale)
    axis_errors: tuple[float, ...]  # the same of dx dy dz droll dpitch dyaw
    # position_error_mm, rotation_error_deg: length of the difference per control step
    position_error_mm: Mean
    rotation_error_deg: Mean
    gripper_agreement: Mean  # share of the steps whose gripper command is the recorded one
    num_gripper_changes: int  # of the predicted command, in all episodes


class EpisodeRow(Record):
    """One policy over all episodes; `settings` is what its backbone's backend reports."""

    policy: str
    precision: str
    bundle: str
    manifest_sha256: str
    execute_steps: int
    settings: dict[str, str]
    score: ActionScore


class EpisodesReport(Record):
    """All policies on the same episodes."""

    format: Literal["rfedge-episodes"] = "rfedge-episodes"
    schema_version: int = 1
    machine: Machine
    data: str
    episodes: tuple[tuple[int, str, str], ...]  # (first frame, task, instruction) of each
    num_steps: int
    num_gripper_changes: int
    # score of a constant, the mean of all recorded actions: a policy that is no better has learnt nothing
    mean_action: ActionScore
    rows: tuple[EpisodeRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Traces:
    """Actions of every episode: recorded, and predicted by each row of the report."""

    recorded: Episodes
    predicted: Sequence[Episodes]


def run_episodes(plan: EpisodesPlan, *, on_step: StageProgress = lambda *_: None) -> tuple[EpisodesReport, Traces]:
    """Step every bundle through the same held-out episodes.

    Raises:
        ArtifactError: a bundle cannot be loaded.
        ConfigError: rate or camera geometry of data and policy differ, or mode or steps do not fit a policy.
        DatasetError: the data cannot be read or hold no episode.
    """
    dataset, segments = _held_out(plan)
    recorded = [recorded_actions(dataset, segment) for segment in segments]
    num_steps = sum(map(len, recorded))
    rows: list[EpisodeRow] = []
    predicted: list[Episodes] = []
    for bundle in plan.bundles:
        name, done = bundle_name(bundle), 0
        policy, controller = PolicyLoop(
            bundle, plan.mode, plan.execute_steps, backend=plan.backend, settings=plan.settings
        ).open()
        with policy:
            refuse_disagreement(str(plan.data), dataset.conventions, f"policy {name}", policy.conventions)
            answers = []
            for segment in segments:
                answers.append(_predict(controller, RecordedFrames.of(dataset, segment), segment.instruction))
                done += segment.num_frames
                on_step(name, done, num_steps)
            predicted.append(answers)
            action = policy.parts.contract.action
            rows.append(
                EpisodeRow(
                    policy=policy.config.name,
                    precision=policy.parts.precision,
                    bundle=name,
                    manifest_sha256=hash_file(bundle / MANIFEST_NAME),
                    execute_steps=choose_loop(policy, plan.mode, plan.execute_steps)[1],
                    settings=policy.parts.backbone.effective_settings(),
                    score=_score(recorded, answers, action),
                )
            )
    report = EpisodesReport(
        machine=describe_machine(),
        data=str(dataset.folder),
        episodes=tuple((segment.start, segment.task, segment.instruction) for segment in segments),
        num_steps=num_steps,
        num_gripper_changes=_gripper_changes(recorded),
        mean_action=_score(recorded, _constant(recorded), ActionSemantics()),
        rows=tuple(rows),
    )
    return report, Traces(recorded, predicted)


def _held_out(plan: EpisodesPlan) -> tuple[CalvinDataset, list[Segment]]:
    split = plan.split
    if split is None and (plan.data / "validation").is_dir():
        split = "validation"
    folder = find_split(plan.data, split)
    dataset = CalvinDataset.open(folder)
    if not dataset.segments:
        remedy = "Give another split."
        raise DatasetError(f"dataset {folder}", got="no labelled episode", expected="at least one", remedy=remedy)
    chosen = list(range(len(dataset.segments)))
    if folder.name != "validation" and plan.validation_fraction > 0:
        chosen = split_segments(dataset, plan.validation_fraction, plan.seed)[1] or chosen
    return dataset, [dataset.segments[chosen[pick]] for pick in evenly_spaced(len(chosen), plan.num_episodes)]


def _predict(controller: Controller, frames: RecordedFrames, instruction: str) -> npt.NDArray[np.float32]:
    """Return the policy's action for every control step of an episode, float32 (step, 7)."""
    controller.reset(instruction)
    return np.stack(
        [controller.control(frames[step] if controller.needs_observation else None).action for step in range(len(frames))]
    )


def _constant(recorded: Episodes) -> Episodes:
    """Return the mean pose and the more frequent gripper command, for every step."""
    actions = np.concatenate(recorded)
    constant = np.append(actions[:, :POSE_SIZE].mean(axis=0), 1.0 if actions[:, POSE_SIZE].mean() >= 0 else -1.0)
    return [np.broadcast_to(constant, episode.shape) for episode in recorded]


def _score(recorded: Episodes, predicted: Episodes, action: ActionSemantics) -> ActionScore:
    differences = [ours[:, :POSE_SIZE] - theirs[:, :POSE_SIZE] for ours, theirs in zip(predicted, recorded, strict=True)]
    opens = [(ours[:, POSE_SIZE] > 0, theirs[:, POSE_SIZE] > 0) for ours, theirs in zip(predicted, recorded, strict=True)]

    def mean(values: list[float]) -> Mean:
        return mean_with_interval(np.array(values), seed=0)

    def length(axes: slice, scale: float) -> Mean:
        return mean([float(scale * np.linalg.norm(difference[:, axes], axis=1).mean()) for difference in differences])

    return ActionScore(
        action_error=mean([float(np.abs(difference).mean()) for difference in differences]),
        axis_errors=tuple(float(error) for error in np.abs(np.concatenate(differences)).mean(axis=0)),
        position_error_mm=length(slice(0, 3), 1000 * action.position_scale_m),
        rotation_error_deg=length(slice(3, 6), float(np.rad2deg(action.rotation_scale_rad))),
        gripper_agreement=mean([float((ours == theirs).mean()) for ours, theirs in opens]),
        num_gripper_changes=_gripper_changes(predicted),
    )


def _gripper_changes(episodes: Episodes) -> int:
    return sum(int(np.count_nonzero(np.diff(episode[:, POSE_SIZE] > 0))) for episode in episodes)


def plot_episodes(report: EpisodesReport, traces: Traces, path: Path) -> None:
    """Plot the episodes with the least, median and largest error of the first policy: a column each, a row per axis."""
    check_matplotlib("--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = [
        float(np.abs(ours[:, :POSE_SIZE] - theirs[:, :POSE_SIZE]).mean())
        for ours, theirs in zip(traces.predicted[0], traces.recorded, strict=True)
    ]
    order = np.argsort(errors, kind="stable")
    shown = list(dict.fromkeys(int(order[round(share * (len(order) - 1))]) for share in _QUANTILES))
    names = ActionSemantics().order
    figure = Figure(figsize=(1 + 4.6 * len(shown), 11), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(names), len(shown), sharex="col", sharey="row", squeeze=False)
    for column, episode in enumerate(shown):
        first, task, instruction = report.episodes[episode]
        title = f"{textwrap.fill(instruction, 60)}\n{task}, frame {first}, mean error {errors[episode]:.3f}"
        grid[0][column].set_title(title, fontsize=9)
        for axis, name in enumerate(names):
            axes = grid[axis][column]
            how = "steps-post" if name == "gripper" else "default"
            axes.plot(traces.recorded[episode][:, axis], color="black", linewidth=1.8, drawstyle=how, label="recorded")
            for number, (row, predicted) in enumerate(zip(report.rows, traces.predicted, strict=True)):
                label = f"{row.policy} {row.precision}"
                axes.plot(predicted[episode][:, axis], color=f"C{number}", linewidth=1.0, drawstyle=how, label=label)
            axes.set_ylim(-1.08, 1.08)
            axes.grid(visible=True, alpha=0.3)
            if column == 0:
                axes.set_ylabel(name)
        grid[-1][column].set_xlabel("control step")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, path)
