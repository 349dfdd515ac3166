"""Sources of a run: the policy and its tokenizer, and the demonstrations cut into training and held-out windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final

import torch

from rfedge.data.calvin import CalvinDataset
from rfedge.data.frame_cache import FrameCache
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import WindowIndex, split_segments
from rfedge.errors import ConfigError, DatasetError
from rfedge.jobs.progress import StageProgress
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo, build_policy, load_checkpoint
from rfedge.model.checkpoint import HEAD_IS_UNTRAINED
from rfedge.train.batches.loader import InstructionTable, batch_tensors, window_features
from rfedge.train.batches.vision_tokens import TOKENS_FOLDER, with_vision_tokens
from rfedge.train.batches.wording import Grammar, check_grammar, learn_tokenizer
from rfedge.train.config import RunConfig, TrainConfig
from rfedge.train.distributed import Processes

_NUM_STATISTICS_WINDOWS: Final = 32
# What a tokenizer decides the rows of.
WORD_WEIGHTS: Final = ("embedding.weight", "output_projection.weight")


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, cut and tokenized; `held_out` may be empty. With `grammar` its instructions are sampled."""

    dataset: CalvinDataset
    cache: FrameCache
    training: WindowIndex
    held_out: WindowIndex
    tokenizer: InstructionTokenizer
    grammar: Grammar | None

    @property
    def scenes(self) -> list[str]:
        return sorted({frames.scene for frames in self.dataset.scenes})

    @cached_property
    def table(self) -> InstructionTable:
        """Tokens of every segment's instruction; raises ContractError where one has more than the policy reads."""
        return InstructionTable(self.tokenizer, self.training, self.grammar)


@dataclass(frozen=True, slots=True)
class Start:
    policy: RoboFlamingo
    tokenizer: InstructionTokenizer | None  # the initial checkpoint's; None without one, or where one is to be learnt anew
    initialised: frozenset[str]  # parameters that were sampled from the seed, none of them when a checkpoint has all
    history: dict[str, Any] | None = None  # what the initial checkpoint says of its training; None without one

    @property
    def head_is_new(self) -> bool:
        """Whether the head has learnt nothing yet, down to its first layer."""
        return {name for name, _ in self.policy.named_parameters() if name.startswith("head.")} <= self.initialised


def start_policy(config: RunConfig, *, keep_untrained_head: bool = False) -> Start:
    """Return weights initialised from the seed, or those of the initial checkpoint where it has them in this shape."""
    policy = build_policy(config.policy, config.seed)
    names = frozenset(name for name, _ in policy.named_parameters())
    if config.initial_checkpoint is None:
        return Start(policy, None, names)
    loaded = load_checkpoint(config.initial_checkpoint)
    before = loaded.config
    if before.head == config.policy.head and before.head.kind == "gpt" and config.policy.window != before.window:
        expected = f"{before.window}, that of {config.initial_checkpoint}"
        remedy = "A GPT head has learnt one position for each frame of its window; leave --window out."
        raise ConfigError("window", got=config.policy.window, expected=expected, remedy=remedy)
    shapes = {name: tensor.shape for name, tensor in policy.state_dict().items()}
    is_trained = keep_untrained_head or not loaded.metadata.get(HEAD_IS_UNTRAINED)
    keeps_head = before.head.kind == config.policy.head.kind and is_trained
    # Other heads, older frames, proprioception, and the words of a tokenizer that is learnt anew begin from the seed.
    kept = {
        name: tensor
        for name, tensor in loaded.policy.state_dict().items()
        if shapes.get(name) == tensor.shape
        and (not name.startswith("head.") or keeps_head)
        and (config.vocab_size is None or name not in WORD_WEIGHTS)
    }
    policy.load_state_dict(kept, strict=False)
    tokenizer = loaded.tokenizer if config.vocab_size is None else None
    return Start(policy, tokenizer, names - kept.keys(), loaded.metadata)


@torch.no_grad()
def standardise_features(policy: RoboFlamingo, sources: TrainingData, config: TrainConfig, device: torch.device) -> None:
    """Give the head of a policy without trained weights features of mean 0 and, together, deviation 1."""
    features = []
    for number in evenly_spaced(len(sources.training), _NUM_STATISTICS_WINDOWS):
        batch = batch_tensors(sources.training, sources.cache, sources.table, [number]).to(device)
        features.append(window_features(policy, batch)[0])
    stacked = torch.cat(features)
    if len(stacked) < 2 or not bool(stacked.var(dim=0).mean() > 0.0):
        got = f"{len(stacked)} frames to learn from" if len(stacked) < 2 else "frames that all look alike"
        remedy = "An episode of one frame shows no motion: record longer ones, or more of them."
        raise DatasetError(f"demonstrations {config.data}", got=got, expected="two or more that differ", remedy=remedy)
    # One deviation for all numbers of a feature: one that hardly changes now would be blown up, and with it every step
    # that the backbone takes later.
    deviation = stacked.var(dim=0).mean().sqrt()
    # Or the constant part of a feature (a maximum over tokens) drowns what changes from frame to frame, see docs/log.md.
    policy.head.standardise_input(stacked.mean(dim=0), deviation.expand(stacked.shape[1]))


def open_training_data(
    config: RunConfig,
    tokenizer: InstructionTokenizer | None,
    progress: StageProgress | None,
    processes: Processes | None = None,
    grammar: Grammar | None = None,
    *,
    share: float = 1.0,
    single_frames: bool = False,
    other_words: Iterable[str] = (),
) -> TrainingData:
    """Open the dataset and its frame cache, and cut it; without a tokenizer one is learnt."""
    dataset = CalvinDataset.open(config.data)
    grammar = check_grammar(config.instructions, grammar, dataset.segments)
    on_frame = None if progress is None else partial(progress, "frame cache")
    with (processes or Processes()).rank0_first():  # the first process builds the cache, the others find it
        cache = FrameCache.open(dataset, folder=config.cache, on_frame=on_frame)
    policy = config.policy
    cut = {"window": policy.window, "frame_stride": policy.frame_stride, "chunk_size": policy.chunk_size}
    if single_frames:
        cut = {"window": 1}
    parts = split_segments(dataset, config.validation_fraction, config.seed, share=share)
    training, held_out = (WindowIndex(dataset.segments, chosen, **cut) for chosen in parts)
    if tokenizer is None:
        tokenizer = learn_tokenizer(dataset.instructions, policy.decoder, grammar, other_words)
    return TrainingData(dataset, cache, training, held_out, tokenizer, grammar)


def precompute_vision_tokens(
    config: TrainConfig,
    sources: TrainingData,
    policy: RoboFlamingo,
    device: torch.device,
    processes: Processes,
    progress: StageProgress | None,
) -> TrainingData:
    """Return the data with the frozen vision tower's tokens in place of the images."""
    folder = sources.dataset.folder / TOKENS_FOLDER if config.cache is None else config.cache.parent / TOKENS_FOLDER
    on_frame = None if progress is None else partial(progress, "vision tokens")
    with processes.rank0_first():  # the first process computes them, the others find them
        seen = with_vision_tokens(
            sources.cache, policy, folder, device, mixed_precision=config.mixed_precision, on_frame=on_frame
        )
        return replace(sources, cache=seen)
