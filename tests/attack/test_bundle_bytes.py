"""A byte of a bundle is changed, or the rest of a file cut off: the bundle is refused in one line."""

import random
from pathlib import Path

import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.errors import ArtifactError
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

pytestmark = pytest.mark.attack


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=4))
    return tmp_path / "b"


def _refused(bundle: Path) -> bool:
    try:
        load_bundle(bundle)
    except ArtifactError as error:
        return "\n" not in str(error)
    return False


def _attack(bundle: Path, every: int, seed: int) -> tuple[int, int]:
    """Change one random bit of every `every`-th byte of each file, then cut there; return (tried, refused in one line)."""
    rng, tried, refused = random.Random(seed), 0, 0
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        # Files behind a sha256 are alike to the last byte; of the manifest, which holds them, more is tried.
        step = every if file.name == "manifest.json" else every * max(1, len(whole) // 4096)
        for index in range(rng.randrange(step), len(whole), step):
            for changed in (
                whole[:index] + bytes([whole[index] ^ 1 << rng.randrange(8)]) + whole[index + 1 :],
                whole[:index],
            ):
                file.write_bytes(changed)
                tried += 1
                refused += _refused(bundle)
        file.write_bytes(whole)
    assert not _refused(bundle)
    return tried, refused


def test_changed_and_cut_bytes_are_refused(bundle: Path) -> None:
    tried, refused = _attack(bundle, every=211, seed=0)
    assert tried > 150
    assert refused == tried


@pytest.mark.slow
@pytest.mark.timeout(3600)  # tens of thousands of loads, on a core that others have too
def test_every_byte_of_the_manifest_and_thousands_of_each_file(bundle: Path) -> None:
    tried, refused = _attack(bundle, every=1, seed=1)
    assert tried > 20_000
    assert refused == tried
