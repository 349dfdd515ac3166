"""Output of `rfedge run` for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfedge.runtimes.rollout import RolloutRecord
    from rfedge.runtimes.rollout.replay import ReplayReport
    from rfedge.runtimes.rollout.rollouts import RolloutReport


def print_run(report: RolloutReport, *, files: dict[str, Path | None]) -> None:
    """Print what was run, how each episode ended and the times; `files` names what was written."""
    from rfedge.cli.show.tables import print_table, say

    lines = [
        (
            f"{report.policy} {report.precision}, {report.mode}, {report.execute_steps} of each chunk; "
            f"{report.environment} scene {report.scene}, looks {report.looks}, renderer {report.renderer}"
        )
    ]
    if "tuned" in report.settings:
        lines.append(f"tuned: {report.settings['tuned']}")
    if report.task is None:
        lines.append(f"instruction {report.instruction!r} is none of the simulator's tasks: success is not checked")
    else:
        lines.append(f"task {report.task}: {report.instruction!r}")
    outcome = {True: "success", False: "failure", None: "not checked"}
    lines += [
        f"seed {episode.seed}: {outcome[episode.success]}, {episode.num_steps} steps, {episode.num_inferences} inferences"
        + _details(episode, holds_rate=report.rate_hz is not None)
        for episode in report.episodes
    ]
    if report.stopped_by is not None:
        lines.append(f"stopped by {report.stopped_by}: zero motion, gripper held")
    if report.num_successes is not None:
        lines.append(f"{report.num_successes} of {len(report.episodes)} episodes succeeded")
    say(*lines)
    rows = []
    for stage, summary in report.per_call_ms.items():
        numbers = (summary.p50, summary.p90, summary.p99, summary.max, report.mean_per_control_step_ms[stage])
        rows.append((stage, *(f"{number:.3f}" for number in numbers)))
    columns = ("stage", "p50", "p90", "p99", "max", "mean per control step")
    print_table("milliseconds per policy call", columns, rows)
    if report.resources is not None:
        from rfedge.benchmarks.report.speed import resource_tables
        from rfedge.cli.show.reports import show_parts

        used = {"run": report.resources.model_dump(mode="json")}
        show_parts(resource_tables("beside the run, simulator included", used))
    for name, path in files.items():
        if path is not None:
            cut = f", cut: {report.record_error}" if name == "record" and report.record_error is not None else ""
            say(f"{name}: {path}{cut}")


def _details(episode: RolloutRecord, *, holds_rate: bool) -> str:
    parts = []
    if holds_rate:
        parts.append(f"{episode.num_late} late (up to {1000 * episode.max_lag_s:.1f} ms), {episode.num_missed} missed")
        parts.append(f"frames up to {episode.max_age_ms:.0f} ms old")
    for count, what in ((episode.num_starved, "starved"), (episode.num_unavailable, "without an answer")):
        if count:
            parts.append(f"{count} {what}")
    parts += [f"{count} {name}" for name, count in episode.interventions.items()]
    parts += [f"{count} equal frames of {camera}" for camera, count in episode.frozen.items()]
    reasons = {
        "misses": "stopped after too many misses",
        "frozen": "stopped: a camera repeats its picture",
        "backbone": "stopped: backbone beyond its deadline",
        "step": "stopped: control step beyond its deadline",
    }
    parts += [reasons[episode.ended]] if episode.ended in reasons else []
    return "".join(f", {part}" for part in parts)


def print_replay(report: ReplayReport) -> None:
    """Print whether every action came out as recorded, or the first one that did not."""
    from rfedge.cli.show.tables import say

    lines = []
    if report.is_cut:
        lines.append(f"note: the last line of {report.record} is not finished; it was left out")
    if report.difference is not None:
        lines += [
            f"episode {difference.episode}, step {difference.step}: {difference.what} differs\n"
            f"  recorded {difference.recorded}\n  replayed {difference.replayed}"
            for difference in (report.cause, report.difference)
            if difference is not None
        ]
        lines += [f"{name}: {versions}" for name, versions in report.changed_versions.items()]
    elif not report.num_steps:
        lines.append(f"{report.record} holds no step: nothing to compare")
    else:
        within = f"within {report.tolerance:g}, at most {report.largest_difference:.2g} off"
        alike = within if report.tolerance else "bit for bit"
        lines.append(f"{report.num_steps} steps of {report.num_episodes} episodes: every action as recorded, {alike}")
    say(*lines)
