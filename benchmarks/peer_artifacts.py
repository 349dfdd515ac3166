"""What `rfedge bench peers` compares, made once in a folder: a random checkpoint, its bundles, a peer's graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rfedge.atomic import atomic_directory
from rfedge.config import preset
from rfedge.errors import ConfigError, explain

__all__ = ["prepare_peers"]

PrepareProgress = Callable[[str, int, int], None]


def prepare_peers(
    size: str, folder: Path, *, data: Path | None, seed: int, progress: PrepareProgress = lambda *_: None
) -> None:
    """Make what is missing in `folder`: checkpoint/, fp32/, int8/ and dynamic/.

    Full size takes some tens of gigabytes of disk and some minutes. Weights are random, so the bundles' accuracy says
    nothing about a trained policy; their gates are forced where they miss, and the manifest says so.

    Args:
        size: a preset.
        data: demonstrations to calibrate on; needed unless int8/ is there.

    Raises:
        ConfigError: an unknown preset, or int8/ is missing and `data` is None.
    """
    from rfedge.export.int8.options import PLAIN
    from rfedge.export.pipeline import ExportOptions, export_checkpoint

    config = preset(size)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        _write_checkpoint(size, checkpoint, seed)
    for precision in ("fp32", "int8"):
        output = folder / precision
        if output.exists():
            continue
        if precision == "int8" and data is None:
            raise ConfigError(
                explain(f"peers in {folder}", got="no int8/", expected="--data to calibrate on", remedy="Pass --data DIR.")
            )
        options = ExportOptions(
            precision=precision,
            data=data,
            int8=PLAIN,  # how weights are rounded changes no time
            num_calibration_frames=8,
            num_parity_steps=4,
            seed=seed,
            force=True,
        )
        export_checkpoint(
            checkpoint,
            output,
            options,
            progress=lambda stage, done, total, name=precision: progress(f"{name}: {stage}", done, total),  # type: ignore[misc]
        )
    dynamic = folder / "dynamic" / "dynamic.onnx"
    if not dynamic.exists():
        progress(f"onnxruntime dynamic int8 of {config.name}", 0, 1)
        _quantize_dynamic(folder / "fp32" / "backbone.onnx", folder / "dynamic")
        progress(f"onnxruntime dynamic int8 of {config.name}", 1, 1)


def _write_checkpoint(size: str, path: Path, seed: int) -> None:
    from rfedge.model import save_checkpoint
    from rfedge.model.meta import random_policy
    from rfedge.tokenizer import InstructionTokenizer
    from rfedge.train.vocabulary import TABLETOP_WORDS

    config = preset(size)
    tokenizer = InstructionTokenizer.from_corpus(
        TABLETOP_WORDS, vocab_size=config.decoder.vocab_size, text_length=config.decoder.text_length
    )
    save_checkpoint(path, random_policy(config, seed), tokenizer, {"weights": f"random, seed {seed}"})


def _quantize_dynamic(source: Path, folder: Path) -> None:
    """Onnxruntime's own dynamic quantization of MatMul, per channel, as its documentation shows it.

    In a process of its own: it holds the fp32 graph in memory, and when that is too much only this row is lost.
    """
    code = (
        "import sys, logging; logging.disable(logging.WARNING)\n"
        "from onnxruntime.quantization import QuantType, quantize_dynamic\n"
        "quantize_dynamic(sys.argv[1], sys.argv[2], op_types_to_quantize=['MatMul'], per_channel=True, "
        "weight_type=QuantType.QInt8, use_external_data_format=True)"
    )
    with atomic_directory(folder, overwrite=True) as temporary:
        subprocess.run(
            [sys.executable, "-c", code, str(source), str(temporary / "dynamic.onnx")], capture_output=True, check=False
        )
