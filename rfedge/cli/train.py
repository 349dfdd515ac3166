"""`rfedge train`: demonstrations -> checkpoint."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rfedge.cli.options import AsJson, given_fields, with_options
from rfedge.train.config import PolicyChanges, TrainConfig, train_config

if TYPE_CHECKING:
    from rfedge.train import TrainResult
    from rfedge.train.stopping import TrainingStop

# Images of each kind and part that a dry run decodes; the lines are all checked.
_NUM_CHECKED_IMAGES = 16


@with_options(TrainConfig, PolicyChanges)
def train(
    config: Annotated[str, typer.Option(help="Preset, or a checkpoint folder to start from.")] = "playtable-small",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check options and data, write nothing.")] = False,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    _require_torch()
    from rfedge.train.distributed import join
    from rfedge.train.stopping import TrainingStop, stop_training_on_signals

    run = train_config(config, policy_changes=given_fields(PolicyChanges, given), **given_fields(TrainConfig, given))
    with join(run.device) as processes:
        stop = TrainingStop()
        with stop_training_on_signals(stop):
            result = _run(run, stop, dry_run=dry_run, shown=processes.is_first)
    if result is not None and processes.is_first:
        _print_result(run, result)
    if result is not None and result.stopped:
        end_stopped(stop, result.steps, run.output, shown=processes.is_first)


def end_stopped(stop: TrainingStop, steps: int, output: Path, *, shown: bool) -> NoReturn:
    """Say what a run that was stopped has kept, and exit with the status of its signal."""
    reason = stop.reason or "another process"
    if shown:
        kept = f"state and checkpoint are in {output}, the same command goes on"
        print(f"rfedge: stopped by {reason} after step {steps}; {kept}", file=sys.stderr)
    number = getattr(signal, reason, None)
    raise typer.Exit(1 if number is None else 128 + number)


def _run(run: TrainConfig, stop: TrainingStop, *, dry_run: bool, shown: bool) -> TrainResult | None:
    """Train, with progress bars if `shown`; return nothing after a dry run."""
    from rfedge.cli.show.progress import stage_progress, training_progress
    from rfedge.cli.show.tables import say_ready
    from rfedge.data import CalvinDataset, FrameCache
    from rfedge.envs.language import GRAMMAR_WORDS, sample_grammar
    from rfedge.train import train_policy
    from rfedge.train.batches.wording import Grammar

    dataset = CalvinDataset.open(run.data)  # here, so that a wrong folder ends here, before anything is built
    if dry_run:
        if shown:
            what = f"{len(dataset.segments)} segments of {', '.join(dataset.tasks)}"
            what += f" and {_check_pairs(run)}" if run.image_text else ""
            say_ready(f"{run.policy.name} on {what}", run.output)
        return None
    grammar = Grammar(sample_grammar, GRAMMAR_WORDS)
    if not shown:
        return train_policy(run, grammar=grammar, stop=stop)
    with stage_progress() as progress:  # one bar at a time: the cache is built here, the training then finds it
        FrameCache.open(dataset, folder=run.cache, on_frame=partial(progress, "frame cache"))
    with training_progress() as (on_stage, on_step):
        return train_policy(run, grammar=grammar, progress=on_stage, on_step=on_step, stop=stop)


def _print_result(run: TrainConfig, result: TrainResult) -> None:
    from rfedge.cli.show.tables import print_json, say

    lines = [
        (
            f"loss {result.first_loss:.4f} -> {result.last_loss:.4f} (means of the first and last {result.num_averaged} "
            f"steps) in {result.steps} steps, {result.epochs:.1f} epochs, {result.seconds:.0f} s"
        )
    ]
    if result.validation_loss is not None and result.validation_gripper_accuracy is not None:
        accuracy = f"gripper right in {100.0 * result.validation_gripper_accuracy:.1f} %"
        lines.append(f"held-out loss {result.validation_loss:.4f}, {accuracy}")
    perplexities = {"captions": result.validation_caption_perplexity, "answers": result.validation_vqa_perplexity}
    held_out = [f"{what} {perplexity:.2f}" for what, perplexity in perplexities.items() if perplexity is not None]
    if held_out:
        lines.append(f"held-out perplexity a token: {', '.join(held_out)}")
    if result.initialised and run.initial_checkpoint is not None:
        lines.append(f"not in {run.initial_checkpoint}, sampled from the seed: {', '.join(result.initialised)}")
    lines.append(f"checkpoint: {result.checkpoint}")
    say(*lines)
    print_json(result)


def _check_pairs(run: TrainConfig) -> str:
    """Check every line of the image-text files and some images, and say what there is."""
    from rfedge.cli.show.progress import stage_progress
    from rfedge.data.image_text import load_image, open_image_text
    from rfedge.data.statistics import evenly_spaced

    with stage_progress() as progress:
        data = open_image_text(
            run.image_text,
            validation_fraction=run.validation_fraction,
            seed=run.seed,
            on_byte=partial(progress, "image-text files"),
        )
        parts = [*data.training.values(), *data.held_out.values()]
        examples = [example for part in parts for example in part.examples(evenly_spaced(len(part), _NUM_CHECKED_IMAGES))]
        for done, example in enumerate(examples, 1):
            load_image(example, run.policy.vision.image_size)
            progress("images", done, len(examples))
    names = {"caption": "captions", "vqa": "questions"}
    training, held_out = (
        ", ".join(f"{len(part)} {names[kind]}" for kind, part in parts.items()) for parts in (data.training, data.held_out)
    )
    return f"{training} ({held_out or 'none'} held out; {len(examples)} images read)"


def _require_torch() -> None:
    import importlib.util

    from rfedge.errors import BackendUnavailableError

    if importlib.util.find_spec("torch") is None:
        remedy = "Install it: pip install 'rfedge[train]'."
        raise BackendUnavailableError("training", got="no PyTorch", expected="torch", remedy=remedy)
