"""Sets of original files that several modules import from; nothing may change them."""

import pytest

from tests.model.fake_originals import DECODERS, Originals, write_originals


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Originals]:
    """One set for each kind of language model; MPT's and LLaMA's are in shards."""
    root = tmp_path_factory.mktemp("originals")
    return {kind: write_originals(root / kind, kind, shards=3 if kind in ("mpt", "llama") else 1) for kind in DECODERS}
