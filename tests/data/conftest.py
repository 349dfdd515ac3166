from pathlib import Path

import pytest

from rfedge.data import CalvinDataset
from tests.synthetic_demonstrations import write_demonstrations


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_demonstrations(tmp_path / "data", episodes_per_task=2, num_frames=6)


@pytest.fixture
def dataset(root: Path) -> CalvinDataset:
    return CalvinDataset.open(root)
