from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rfedge.train import TrainConfig, train_config
from tests.synthetic_demonstrations import write_demonstrations


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"), episodes_per_task=3, num_frames=10)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Batches this small gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def configure(demonstrations: Path) -> Callable[..., TrainConfig]:
    """Return a function (output, policy_changes={}, **options) -> TrainConfig of a small run of the tiny preset."""

    def build(output: Path, policy_changes: dict[str, Any] | None = None, **options: Any) -> TrainConfig:
        defaults = {"steps": 6, "batch_size": 3, "validate_every": 4, "validation_windows": 6, "head_first_steps": 0}
        changes = {"window": 4, **(policy_changes or {})}
        return train_config("tiny", data=demonstrations, output=output, policy_changes=changes, **{**defaults, **options})

    return build
