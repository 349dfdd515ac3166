"""What `rfedge run` prints for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfedge.runtimes.rollout import RolloutRecord
    from rfedge.runtimes.rollout.replay import ReplayReport
    from rfedge.runtimes.rollout.rollouts import RolloutReport


def print_run(report: RolloutReport, *, files: dict[str, Path | None], to_stderr: bool) -> None:
    """Print what was run, how each episode ended and the times; `files` names what was written."""
    from rfedge.cli.show.tables import print_table

    out = sys.stderr if to_stderr else sys.stdout
    print(
        f"{report.policy} {report.precision}, {report.mode}, {report.execute_steps} of each chunk; "
        f"{report.environment} scene {report.scene}, looks {report.looks}, renderer {report.renderer}",
        file=out,
    )
    if "tuned" in report.settings:
        print(f"tuned: {report.settings['tuned']}", file=out)
    if report.task is None:
        print(f"instruction {report.instruction!r} is none of the simulator's tasks: success is not checked", file=out)
    else:
        print(f"task {report.task}: {report.instruction!r}", file=out)
    outcome = {True: "success", False: "failure", None: "not checked"}
    for episode in report.episodes:
        print(
            f"seed {episode.seed}: {outcome[episode.success]}, {episode.num_steps} steps, "
            f"{episode.num_inferences} inferences{_details(episode, holds_rate=report.rate_hz is not None)}",
            file=out,
        )
    if report.stopped_by is not None:
        print(f"stopped by {report.stopped_by}: zero motion, gripper held", file=out)
    if report.num_successes is not None:
        print(f"{report.num_successes} of {len(report.episodes)} episodes succeeded", file=out)
    rows = []
    for stage, summary in report.per_call_ms.items():
        numbers = (summary.p50, summary.p90, summary.p99, summary.max, report.mean_per_control_step_ms[stage])
        rows.append((stage, *(f"{number:.3f}" for number in numbers)))
    columns = ("stage", "p50", "p90", "p99", "max", "mean per control step")
    print_table("milliseconds per policy call", columns, rows, to_stderr=to_stderr)
    if report.resources is not None:
        from rfedge.benchmarks.report.speed import resource_tables
        from rfedge.cli.show.reports import show_parts

        used = {"run": report.resources.model_dump(mode="json")}
        show_parts(resource_tables("beside the run, simulator included", used), to_stderr=to_stderr)
    for name, path in files.items():
        if path is not None:
            cut = f", cut: {report.record_error}" if name == "record" and report.record_error is not None else ""
            print(f"{name}: {path}{cut}", file=out)


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


def print_replay(report: ReplayReport, *, to_stderr: bool) -> None:
    """Print whether every action came out as recorded, or the first one that did not."""
    out = sys.stderr if to_stderr else sys.stdout
    if report.is_cut:
        note = f"note: the last line of {report.record} is not finished; it was left out"
        print(note, file=out)
    if report.difference is None and not report.num_steps:
        print(f"{report.record} holds no step: nothing to compare", file=out)
        return
    if report.difference is None:
        alike = (
            f"within {report.tolerance:g}, at most {report.largest_difference:.2g} off"
            if report.tolerance
            else "bit for bit"
        )
        text = f"{report.num_steps} steps of {report.num_episodes} episodes: every action as recorded, {alike}"
        print(text, file=out)
        return
    for difference in filter(None, (report.cause, report.difference)):
        print(
            f"episode {difference.episode}, step {difference.step}: {difference.what} differs\n"
            f"  recorded {difference.recorded}\n  replayed {difference.replayed}",
            file=out,
        )
    for name, versions in report.changed_versions.items():
        print(f"{name}: {versions}", file=out)
