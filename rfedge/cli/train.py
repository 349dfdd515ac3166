"""`rfedge train`: demonstrations -> checkpoint."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rfedge.train import TrainConfig, TrainResult
    from rfedge.train.stopping import TrainingStop

__all__ = ["end_stopped", "train"]

# Images of each kind and part that a dry run decodes; the lines are all checked.
_NUM_CHECKED_IMAGES = 16


def train(
    data: Annotated[Path, typer.Option(help="Demonstrations in the CALVIN format.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; the result is its checkpoint/ folder.")],
    config: Annotated[str, typer.Option(help="Preset, or a checkpoint folder to start from.")] = "playtable-small",
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Stop after this many passes; default 5 if nothing else stops.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this much training time, resumed parts included.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a step, over all processes and passes.")] = 8,
    accumulate: Annotated[
        int,
        typer.Option(min=1, help="Passes that a step's windows are learnt in, one after the other, to save memory."),
    ] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Highest rate; default from the preset's recipe.")] = None,
    head_rate: Annotated[
        float | None, typer.Option(help="Factor of the learning rate for the head; default from the recipe.")
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Frames a window.")] = None,
    frame_stride: Annotated[int | None, typer.Option(min=1, help="Control steps between two frames (jump-step).")] = None,
    chunk_size: Annotated[int | None, typer.Option(min=1, help="Actions per inference; at least the frame stride.")] = None,
    time_keeping: Annotated[str | None, typer.Option(help="window or carry.")] = None,
    head: Annotated[str | None, typer.Option(help="lstm, gpt or mlp, about as large as the preset's.")] = None,
    fusion: Annotated[
        str | None, typer.Option(help="post (join the cameras' latents), pre (join their patches) or two_way (each alone).")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="max or average, over the tokens.")] = None,
    media_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames that the text reads; above 1 with --head mlp: MLP with history.")
    ] = None,
    proprioception: Annotated[
        bool | None, typer.Option(help="Also read the arm's pose and the gripper's last command.")
    ] = None,
    trainable: Annotated[
        str | None,
        typer.Option(
            help="What learns: paper (all but vision and decoder), freeze-emb (as paper, without the word embedding), "
            "freeze-vision (all but vision), "
            "full, or head (the policy head alone); default from the preset's recipe."
        ),
    ] = None,
    instructions: Annotated[
        str,
        typer.Option(
            help="data (the demonstrations' own) or grammar (sampled at every step, thousands of sentences per task)."
        ),
    ] = "data",
    vocab_size: Annotated[
        int | None,
        typer.Option(
            help="Learn a tokenizer of at most so many entries anew, and the word embedding with it: for a checkpoint whose "
            "texts nobody trained (pretrain --language-weight 0), or whose tokenizer spells the grammar's words in pieces."
        ),
    ] = None,
    vision_tokens: Annotated[
        bool,
        typer.Option(
            "--vision-tokens",
            help="With a frozen vision tower: compute what it sees in each frame once, and keep it on disk.",
        ),
    ] = False,
    vl_pretraining: Annotated[
        bool,
        typer.Option(help="Keep the checkpoint's resampler and cross-attention, or draw them anew from the seed."),
    ] = True,
    image_text: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSONL file of image-text pairs to co-train on (image and caption, or image, question and answer); "
            "may be given several times."
        ),
    ] = None,
    image_text_batch_size: Annotated[int, typer.Option(min=1, help="Pairs of each kind a step.")] = 20,
    caption_weight: Annotated[float, typer.Option(help="Factor of the captions' language loss.")] = 0.005,
    vqa_weight: Annotated[float, typer.Option(help="Factor of the answers' language loss.")] = 0.5,
    head_first_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps in which only the head learns, on cached features."),
    ] = None,
    loss: Annotated[str, typer.Option(help="huber or mse.")] = "huber",
    gripper_weight: Annotated[float | None, typer.Option(help="Factor of the gripper's cross-entropy.")] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="Random shift per window, per frame, or none; default from the recipe.")
    ] = None,
    pointing_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Factor of the loss of queries that point at things, with --trainable full; default 0."),
    ] = None,
    task_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Factor of the loss of a probe that reads the task off the feature; default 0."),
    ] = None,
    light: Annotated[
        float | None, typer.Option(min=0, help="Deviation of random gains of the pictures that are pointed at; default 0.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the segments, and of the pairs' images, held out.")
    ] = 0.1,
    data_share: Annotated[
        float, typer.Option(help="Share of the other segments to learn from, such as 0.1 to see what data is worth.")
    ] = 1.0,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between two states to resume from.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights, order, shifts and dropout.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the newest state in --output, or start over.")] = True,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    parallel: Annotated[
        str,
        typer.Option(help="Among processes that torchrun started: ddp (each holds the policy) or fsdp (each a part of it)."),
    ] = "ddp",
    mixed_precision: Annotated[
        str, typer.Option(help="no, bf16, or on a GPU fp16: what MatMuls are computed in; weights stay float32.")
    ] = "no",
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw-8bit, with moments of 8 bits (bitsandbytes).")] = "adamw",
    cache: Annotated[Path | None, typer.Option(help="Folder for the frame cache; default beside the data.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check options and data, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, last on stdout.")] = False,
) -> None:
    _require_torch()
    from rfedge.train import train_config
    from rfedge.train.distributed import join
    from rfedge.train.stopping import TrainingStop, stop_training_on_signals

    run = train_config(
        config,
        data=data,
        output=output,
        policy_changes={
            "window": window,
            "frame_stride": frame_stride,
            "chunk_size": chunk_size,
            "time_keeping": time_keeping,
            "head": head,
            "fusion": fusion,
            "pooling": pooling,
            "media_frames": media_frames,
            "proprioception": proprioception,
        },
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        head_rate=head_rate,
        trainable=trainable,
        instructions=instructions,
        vocab_size=vocab_size,
        vision_tokens=vision_tokens,
        vl_pretraining=vl_pretraining,
        image_text=tuple(image_text or ()),
        image_text_batch_size=image_text_batch_size,
        caption_weight=caption_weight,
        vqa_weight=vqa_weight,
        head_first_steps=head_first_steps,
        loss=loss,
        gripper_weight=gripper_weight,
        augmentation=augmentation,
        pointing_weight=pointing_weight,
        task_weight=task_weight,
        light=light,
        validation_fraction=validation_fraction,
        data_share=data_share,
        save_every=save_every,
        seed=seed,
        resume=resume,
        num_threads=num_threads,
        device=device,
        cache=cache,
        parallel=parallel,
        mixed_precision=mixed_precision,
        optimizer=optimizer,
    )
    with join(device) as processes:
        stop = TrainingStop()
        with stop_training_on_signals(stop):
            result = _run(run, stop, dry_run=dry_run, shown=processes.is_first)
    if result is not None and processes.is_first:
        _print_result(run, result, as_json=as_json)
    if result is not None and result.stopped:
        end_stopped(stop, result.steps, run.output, shown=processes.is_first)


def end_stopped(stop: TrainingStop, steps: int, output: Path, *, shown: bool) -> NoReturn:
    """Say what a run that was stopped has kept, and exit with the status of its signal."""
    reason = stop.reason or "another process"
    if shown:
        text = (
            f"rfedge: stopped by {reason} after step {steps}; state and checkpoint are in {output}, the same command goes on"
        )
        print(text, file=sys.stderr)
    number = getattr(signal, reason, None)
    raise typer.Exit(1 if number is None else 128 + number)


def _run(run: TrainConfig, stop: TrainingStop, *, dry_run: bool, shown: bool) -> TrainResult | None:
    """Train, with progress bars if `shown`; return nothing after a dry run."""
    from rfedge.cli.show.progress import stage_progress, training_progress
    from rfedge.data import CalvinDataset, FrameCache
    from rfedge.envs.language import GRAMMAR_WORDS, sample_grammar
    from rfedge.train import train_policy
    from rfedge.train.batches.wording import Grammar

    dataset = CalvinDataset.open(run.data)  # here, so that a wrong folder is told before anything is built
    if dry_run and not shown:
        return None
    if dry_run:
        what = f"{len(dataset.segments)} segments of {', '.join(dataset.tasks)}"
        if run.image_text:
            what += f" and {_check_pairs(run)}"
        print(f"ready: {run.policy.name} on {what} -> {run.output}; nothing was written")
        return None
    grammar = Grammar(sample_grammar, GRAMMAR_WORDS)
    if not shown:
        return train_policy(run, grammar=grammar, stop=stop)
    with stage_progress() as progress:  # one bar at a time: the cache is built here, the training then finds it
        FrameCache.open(dataset, folder=run.cache, on_frame=lambda done, total: progress("frame cache", done, total))
    with training_progress() as (on_stage, on_step):
        return train_policy(run, grammar=grammar, progress=on_stage, on_step=on_step, stop=stop)


def _print_result(run: TrainConfig, result: TrainResult, *, as_json: bool) -> None:
    """Print what came of a run: lines for people, or those on stderr and one JSON document on stdout."""
    lines = [
        (
            f"loss {result.first_loss:.4f} -> {result.last_loss:.4f} "
            f"(means of the first and last {result.num_averaged} steps) "
            f"in {result.steps} steps, {result.epochs:.1f} epochs, {result.seconds:.0f} s"
        )
    ]
    if result.validation_loss is not None and result.validation_gripper_accuracy is not None:
        percent = 100.0 * result.validation_gripper_accuracy
        lines.append(f"held-out loss {result.validation_loss:.4f}, gripper right in {percent:.1f} %")
    perplexities = {"captions": result.validation_caption_perplexity, "answers": result.validation_vqa_perplexity}
    told = [f"{what} {perplexity:.2f}" for what, perplexity in perplexities.items() if perplexity is not None]
    if told:
        lines.append(f"held-out perplexity a token: {', '.join(told)}")
    if result.drawn and run.initial_checkpoint is not None:
        lines.append(f"not in {run.initial_checkpoint}, sampled from the seed: {', '.join(result.drawn)}")
    lines.append(f"checkpoint: {result.checkpoint}")
    print("\n".join(lines), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "checkpoint": str(result.checkpoint)}))


def _check_pairs(run: TrainConfig) -> str:
    """Check every line of the image-text files and some images, and say what there is."""
    from rfedge.cli.show.progress import stage_progress
    from rfedge.data.image_text import load_image, open_image_text

    with stage_progress() as progress:
        data = open_image_text(
            run.image_text,
            validation_fraction=run.validation_fraction,
            seed=run.seed,
            on_byte=lambda done, total: progress("image-text files", done, total),
        )
        parts = [*data.training.values(), *data.held_out.values()]
        examples = [example for part in parts for example in part.examples(part.spread(_NUM_CHECKED_IMAGES))]
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
        raise BackendUnavailableError(
            "training", got="no PyTorch", expected="torch", remedy="Install it: pip install 'rfedge[train]'."
        )
