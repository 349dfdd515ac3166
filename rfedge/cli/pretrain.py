"""`rfedge pretrain`: frames of demonstrations -> a checkpoint whose backbone sees, for `rfedge train --config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.train.pretraining.config import PretrainConfig


@with_options(PretrainConfig)
def pretrain(
    config: Annotated[str, typer.Option(help="Preset, or a checkpoint folder to start from.")] = "playtable-small",
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import training_progress
    from rfedge.cli.show.tables import print_json, say
    from rfedge.cli.train import end_stopped
    from rfedge.config import preset, preset_names
    from rfedge.envs.language import GRAMMAR_WORDS, sample_grammar
    from rfedge.errors import ConfigError
    from rfedge.model import load_checkpoint
    from rfedge.train.batches.wording import Grammar
    from rfedge.train.config import with_vocabulary
    from rfedge.train.pretraining.pretrain import pretrain_policy
    from rfedge.train.stopping import TrainingStop, stop_training_on_signals

    if given["steps"] is None and given["minutes"] is None:
        raise ConfigError("pretraining", got="no end", expected="--steps or --minutes", remedy="Pass one of them.")
    initial = Path(config) if config not in preset_names() and Path(config).is_dir() else None
    policy = preset(config) if initial is None else load_checkpoint(initial).config
    plan = plan_of(PretrainConfig, given, policy=with_vocabulary(policy, given["vocab_size"]), initial_checkpoint=initial)
    stop = TrainingStop()
    with training_progress("pretraining") as (on_stage, on_step), stop_training_on_signals(stop):
        grammar = Grammar(sample_grammar, GRAMMAR_WORDS)
        result = pretrain_policy(plan, grammar=grammar, progress=on_stage, on_step=on_step, stop=stop)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in result.validation.items())
    say(
        f"{result.steps} steps in {result.seconds / 60:.1f} min over {result.num_frames} frames: "
        f"loss {result.first_loss:.3f} -> {result.last_loss:.3f} "
        f"(means of the first and last {result.num_averaged} steps); {measured}; "
        f"checkpoint {result.checkpoint}"
    )
    print_json(result)
    if result.stopped:
        end_stopped(stop, result.steps, plan.output, shown=True)
