"""`rfedge run`: drive a simulator with a bundle and say how often it succeeded, how long it took and how fast it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.runtimes.control.limits import MAX_STEPS

if TYPE_CHECKING:
    from rfedge.runtimes.control.loop import StepReport

__all__ = ["run"]


def run(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            callback=bundle_folder,
            help="Folder written by `rfedge export`, or a shipped policy's name; without one, the one for the mode.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="closed-loop, open-loop, jump-step or overlapped; default: as the policy was trained."),
    ] = None,
    execute_steps: Annotated[
        int | None,
        typer.Option(
            help="Actions played per inference; default: as the policy was trained, the whole chunk with --mode open-loop. "
            "Overlapped: least number of steps between two frames."
        ),
    ] = None,
    ensemble: Annotated[
        float | None,
        typer.Option(
            help="Play the weighted mean of overlapping chunks; decay of the weights, 0.01 in ACT, below 0: newer first."
        ),
    ] = None,
    env: Annotated[str, typer.Option(help="playtable, or calvin where calvin_env is installed.")] = "playtable",
    scene: Annotated[str, typer.Option(help="Table layout, A to D.")] = "D",
    looks: Annotated[Looks | None, typer.Option(help=LOOKS_HELP)] = None,
    renderer: Annotated[Renderer | None, typer.Option(help=RENDERER_HELP)] = None,
    task: Annotated[str | None, typer.Option(help="Task to do and to judge, for instance open_drawer.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Words for the policy; judged if they describe a known task.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes, with seeds SEED, SEED + 1, ...")] = 1,
    max_steps: Annotated[int, typer.Option(help="Control steps per episode.")] = MAX_STEPS,
    seed: Annotated[
        int, typer.Option(help="Number of the first episode's start: those of `bench success --single-tasks`.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads of the policy; 0 is all physical cores.")] = 0,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, or where it is installed openvino, or tensorrt after `rfedge build`.")
    ] = "onnxruntime",
    provider: Annotated[str, typer.Option(help="Of onnxruntime: cpu, cuda, tensorrt or openvino.")] = "cpu",
    one_stage_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-stage-at-a-time",
            help="Of a backbone in two stages, load each for its call and free it before the next: least memory, slow.",
        ),
    ] = False,
    video: Annotated[Path | None, typer.Option(help="Write what the cameras saw to this .gif or .mp4.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Hold the control rate on the wall clock.")] = False,
    rate_hz: Annotated[
        float | None, typer.Option(help="Hold this rate, which must be the policy's own times --speed; the default is.")
    ] = None,
    speed: Annotated[
        float, typer.Option(min=1e-3, help="Share of the policy's own rate to hold, 0.2 for a first run in slow motion.")
    ] = 1.0,
    realtime_priority: Annotated[
        int | None,
        typer.Option(help="With a rate: schedule the control loop before ordinary programs, 1 to 97; needs the right to."),
    ] = None,
    late: Annotated[
        str,
        typer.Option(help="What a missed step sends: send (its late action), hold (zero motion) or repeat (the last one)."),
    ] = "send",
    max_repeats: Annotated[int, typer.Option(help="With --late repeat: hold after so many misses in a row.")] = 5,
    stop_after_misses: Annotated[
        int | None, typer.Option(help="Stop the robot and end with status 1 after this many misses in a row.")
    ] = None,
    stop_after_frozen: Annotated[
        int | None, typer.Option(help="The same after so many frames in a row in which a camera repeats its picture.")
    ] = None,
    backbone_deadline_ms: Annotated[
        float | None, typer.Option(help="Stop the robot and end with status 1 when an inference takes longer.")
    ] = None,
    step_deadline_ms: Annotated[
        float | None,
        typer.Option(
            help="The same for a whole control step, camera and robot included; default, where a rate is held or the "
            "backbone has a deadline, two seconds more than an inference may take."
        ),
    ] = None,
    max_step_m: Annotated[
        float | None, typer.Option(help="Longest translation of a control step in metres; longer ones are shortened.")
    ] = None,
    max_step_rad: Annotated[float | None, typer.Option(help="The same for the rotation in radians.")] = None,
    workspace: Annotated[
        str | None,
        typer.Option(help="Box in the world frame the tool stays in: XMIN,YMIN,ZMIN,XMAX,YMAX,ZMAX in metres."),
    ] = None,
    max_pose_jump_m: Annotated[
        float | None,
        typer.Option(help="End the run when the reported tool jumps further than this beyond what was sent, in metres."),
    ] = None,
    min_gripper_steps: Annotated[
        int | None, typer.Option(help="Control steps that the gripper stays opened or closed before it may change again.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write every step to this file, one JSON line each.")] = None,
    record_frames: Annotated[
        bool, typer.Option("--record-frames", help="With --record: write a frame of every step beside it, FILE.frames/.")
    ] = False,
    rerun: Annotated[
        Path | None, typer.Option(help="Write frames, actions and ages to this .rrd file for the Rerun viewer.")
    ] = None,
    resources: Annotated[
        bool,
        typer.Option("--resources", help="Sample memory, power and temperature beside the run, the simulator included."),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask a `rfedge serve` at ws://HOST:PORT or wss://HOST:PORT instead of a bundle; holds the rate, and holds "
            "the robot while the server is away. Token: --server-token-file or $RFEDGE_SERVER_TOKEN."
        ),
    ] = None,
    server_deadline_ms: Annotated[float, typer.Option(help="Longest wait for an action of the server.")] = 1000.0,
    server_token_file: Annotated[Path | None, typer.Option(help="File with the server's token.")] = None,
    server_certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate of who signed the server's; default the system's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rich.console import Console

    from rfedge.cli.show.progress import step_progress
    from rfedge.cli.show.run_output import print_run
    from rfedge.policies import default_bundle
    from rfedge.runtimes import RuntimeSettings
    from rfedge.runtimes.backends.ort_providers import parse_provider
    from rfedge.runtimes.control.lateness import LatePolicy
    from rfedge.runtimes.control.safety import SafetyLimits, Workspace
    from rfedge.runtimes.control.stopping import SIGNAL_STATUS, StopRequest, stop_on_signals
    from rfedge.runtimes.rollout.plan import RolloutPlan, ServerAddress
    from rfedge.runtimes.rollout.rollouts import run_rollouts

    if bundle is None and server is None:
        bundle = default_bundle(mode)
    address = None
    if server is not None:
        from rfedge.runtimes.server.security import read_token

        address = ServerAddress(server, server_deadline_ms, read_token(server_token_file), server_certificate)
    plan = RolloutPlan(
        bundle=bundle,
        mode=mode,
        execute_steps=execute_steps,
        ensemble=ensemble,
        env=env,
        scene=scene,
        looks=looks,
        renderer=renderer,
        task=task,
        instruction=instruction,
        episodes=episodes,
        max_steps=max_steps,
        seed=seed,
        realtime=realtime,
        rate_hz=rate_hz,
        speed=speed,
        realtime_priority=realtime_priority,
        late=LatePolicy(late, stop_after_misses, max_repeats),
        limits=SafetyLimits(
            max_step_m,
            max_step_rad,
            None if workspace is None else Workspace.parse(workspace),
            max_pose_jump_m=max_pose_jump_m,
            min_gripper_steps=min_gripper_steps,
        ),
        stop_after_frozen=stop_after_frozen,
        backbone_deadline_ms=backbone_deadline_ms,
        step_deadline_ms=step_deadline_ms,
        video=video,
        record=record,
        record_frames=record_frames,
        rerun=rerun,
        resources=resources,
        settings=RuntimeSettings(
            threads=threads, providers=parse_provider(provider), one_stage_at_a_time=one_stage_at_a_time
        ),
        backend=backend,
        server=address,
    )
    stop = StopRequest()
    with step_progress(plan.episodes * plan.max_steps) as (advance, warn), stop_on_signals(stop):

        def on_step(episode: int, step: StepReport) -> None:
            # Set, not advanced: an episode that succeeds early fills its share at once.
            advance(episode * plan.max_steps + step.index + 1)

        report = run_rollouts(plan, on_load=warn, on_step=on_step, stop=stop)
    print_run(Console(stderr=as_json), report, files={"video": video, "record": record, "rerun": rerun})
    if as_json:
        typer.echo(report.model_dump_json())
    if report.stopped_by is not None:
        raise typer.Exit(SIGNAL_STATUS.get(report.stopped_by, 1))
    if report.was_stopped or report.record_error is not None:
        raise typer.Exit(1)
