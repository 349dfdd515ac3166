"""One handmade bundle for all server tests, and a policy on it whose calls a test can hold back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rfedge.runtimes import RuntimeSettings
from rfedge.runtimes.backends.registry import open_parts
from tests.runtimes.server.running_server import GatedPolicy


@pytest.fixture
def policy(bundle: Path) -> Iterator[GatedPolicy]:
    with GatedPolicy(open_parts("onnxruntime", bundle, RuntimeSettings(threads=1))) as policy:
        yield policy
