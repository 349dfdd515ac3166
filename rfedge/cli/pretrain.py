"""`rfedge pretrain`: frames of demonstrations -> a checkpoint whose backbone sees, for `rfedge train --config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["pretrain"]


def pretrain(
    data: Annotated[Path, typer.Option(help="Demonstrations in the CALVIN format, with scene_obs.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; the result is its checkpoint/ folder.")],
    config: Annotated[str, typer.Option(help="Preset, or a checkpoint folder to start from.")] = "playtable-small",
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this much training time, resumed parts included.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest rate.")] = 5e-4,
    language_weight: Annotated[
        float, typer.Option(help="Factor of the language loss; 0 leaves texts and decoder out, for the tower alone.")
    ] = 1.0,
    pointing_weight: Annotated[
        float, typer.Option(help="Factor of the loss of queries that point at things, beside the language loss.")
    ] = 1.0,
    light: Annotated[
        float, typer.Option(min=0, help="Deviation of random gains of the pictures' channels; another renderer's light.")
    ] = 0.0,
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
    validation_fraction: Annotated[float, typer.Option(help="Share of the segments held out.")] = 0.05,
    validate_every: Annotated[int, typer.Option(min=0, help="Steps between two measurements; 0 for the end only.")] = 500,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between two training states; 0 for the end only.")] = 250,
    mixed_precision: Annotated[
        str, typer.Option(help="no, or bf16 where the processor multiplies it faster (`rfedge doctor`).")
    ] = "no",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order of frames and questions.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the newest state in --output, or start over.")] = True,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the frame cache; default beside the data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    import dataclasses
    import json
    import sys

    from rfedge.cli.show.progress import training_progress
    from rfedge.cli.train import end_stopped
    from rfedge.config import preset, preset_names
    from rfedge.envs.language import GRAMMAR_WORDS, sample_grammar
    from rfedge.errors import ConfigError
    from rfedge.model import load_checkpoint
    from rfedge.train.batches.wording import Grammar
    from rfedge.train.config import with_vocabulary
    from rfedge.train.pretraining.pretrain import PretrainConfig, pretrain_policy
    from rfedge.train.stopping import TrainingStop, stop_training_on_signals

    if steps is None and minutes is None:
        remedy = "Pass one of them."
        raise ConfigError("pretraining", got="no end", expected="--steps or --minutes", remedy=remedy)
    initial = Path(config) if config not in preset_names() and Path(config).is_dir() else None
    plan = PretrainConfig(
        policy=with_vocabulary(preset(config) if initial is None else load_checkpoint(initial).config, vocab_size),
        initial_checkpoint=initial,
        data=data,
        output=output,
        steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        language_weight=language_weight,
        pointing_weight=pointing_weight,
        light=light,
        mixed_precision=mixed_precision,
        instructions=instructions,
        vocab_size=vocab_size,
        validation_fraction=validation_fraction,
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
        resume=resume,
        num_threads=num_threads,
        cache=cache,
    )
    stop = TrainingStop()
    with training_progress("pretraining") as (on_stage, on_step), stop_training_on_signals(stop):
        grammar = Grammar(sample_grammar, GRAMMAR_WORDS)
        result = pretrain_policy(plan, grammar=grammar, progress=on_stage, on_step=on_step, stop=stop)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in result.validation.items())
    print(
        f"{result.steps} steps in {result.seconds / 60:.1f} min over {result.num_frames} frames: "
        f"loss {result.first_loss:.3f} -> {result.last_loss:.3f} "
        f"(means of the first and last {result.num_averaged} steps); {measured}; "
        f"checkpoint {result.checkpoint}",
        file=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "checkpoint": str(result.checkpoint)}))
    if result.stopped:
        end_stopped(stop, result.steps, output, shown=True)
