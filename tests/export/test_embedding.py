"""The token table comes back from a bundle as the proof saw it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rfedge.config import preset
from rfedge.export.language import StoredTable, stored_table
from rfedge.runtimes.policy.text import EmbeddingTable


@pytest.mark.parametrize(("dtype", "worst"), [("float32", 0.0), ("float16", 5e-4), ("int8", 5e-3)])
def test_a_robot_reads_what_the_proof_read(dtype: str, worst: float, tmp_path: Path) -> None:
    table = 0.3 * np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    table[9] = 0.0
    stored = StoredTable(dtype)  # type: ignore[arg-type]
    save_file(stored.tensors(table), tmp_path / "embedding.safetensors")
    ids = np.array([3, 7, 3, 9])
    rows = EmbeddingTable(tmp_path / "embedding.safetensors", 16)(ids)
    np.testing.assert_array_equal(rows, stored.as_stored(table[ids]))
    assert np.abs(rows - table[ids]).max() <= worst


@pytest.mark.parametrize(
    ("name", "precision", "dtype"),
    [
        ("M-3B", "fp32", "float32"),
        ("M-3B", "fp16", "float16"),
        ("M-3B", "int8", "int8"),
        ("playtable-small", "int8", "float16"),
        ("playtable-small", "int4-weight", "int8"),
    ],
)
def test_only_full_size_tables_and_int4_are_stored_in_8_bits(name: str, precision: str, dtype: str) -> None:
    assert stored_table(preset(name).decoder, precision).dtype == dtype  # type: ignore[arg-type]
