from pathlib import Path

import pytest
import torch

from rfedge.config import PolicyConfig, preset
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import build_policy, save_checkpoint
from tests.synthetic_demonstrations import TASKS, write_demonstrations


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def write_checkpoint(path: Path, config: PolicyConfig, seed: int = 0) -> Path:
    tokenizer = InstructionTokenizer.from_corpus(TASKS.values(), vocab_size=400, text_length=config.decoder.text_length)
    policy = build_policy(config, seed=seed)
    # An untrained gripper hovers at one half, where any rounding flips it; a trained one does not.
    torch.nn.init.constant_(policy.head.gripper[-1].bias, 1.0)
    save_checkpoint(path, policy, tokenizer, {"dataset": {"scenes": ["D"]}})
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`tiny` in both time-keepings, with a chunk of 2 so that stacked actions are part of every comparison."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: write_checkpoint(folder / name, preset("tiny").model_copy(update={"time_keeping": name, "chunk_size": 2}))
        for name in ("window", "carry")
    }
