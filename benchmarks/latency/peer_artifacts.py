"""What `rfedge bench peers` compares, made once in a folder: a random checkpoint, its bundles, a peer's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rfedge.benchmarks.latency.optimum_quantize import quantize_with_optimum
from rfedge.config import Precision, preset
from rfedge.errors import ConfigError
from rfedge.io.atomic import atomic_file
from rfedge.jobs.progress import StageProgress

__all__ = ["WITHOUT_OPTIMUM", "prepare_peers"]

WITHOUT_OPTIMUM: Final = "without-optimum.txt"


def prepare_peers(
    size: str, folder: Path, *, data: Path | None, seed: int, progress: StageProgress = lambda *_: None
) -> None:
    """Make what is missing in `folder`: checkpoint/, fp32/, int8/, int8-all/, dynamic/ and, where Optimum can, optimum/.

    int8/ is what `--precision int8` writes, with the attention of queries in float; in int8-all/ every MatMul is int8.
    dynamic/ holds the graph that onnxruntime's own `quantize_dynamic` writes, made weight by weight: that function needs
    several times the memory of the fp32 graph. So does Optimum; where it cannot run, `WITHOUT_OPTIMUM` says why.

    Full size takes some tens of gigabytes of disk and some minutes. Weights are random, so the bundles' accuracy says
    nothing about a trained policy; their gates are forced where they miss, and the manifest says so.

    Args:
        size: a preset.
        data: demonstrations to calibrate on; needed unless int8/ is there.

    Raises:
        ConfigError: an unknown preset, or int8/ is missing and `data` is None.
    """
    from rfedge.export.int8.options import PLAIN
    from rfedge.export.options import ExportOptions
    from rfedge.export.pipeline import export_checkpoint
    from rfedge.export.precisions.dynamic_int8 import make_dynamic_int8

    preset(size)  # an unknown one is refused before anything is made
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        _write_checkpoint(size, checkpoint, seed)
    kept_float: tuple[tuple[str, Precision, tuple[str, ...] | None], ...]
    kept_float = (("fp32", "fp32", None), ("int8", "int8", None), ("int8-all", "int8", ()))
    for name, precision, keep_float in kept_float:
        output = folder / name
        if output.exists():
            continue
        if precision == "int8" and data is None:
            raise ConfigError(
                f"peers in {folder}", got=f"no {name}/", expected="--data to calibrate on", remedy="Pass --data DIR."
            )
        options = ExportOptions(
            precision=precision,
            data=data,
            keep_float=keep_float,
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
            progress=lambda stage, done, total, name=name: progress(f"{name}: {stage}", done, total),  # type: ignore[misc]
        )
    dynamic = folder / "dynamic" / "dynamic.onnx"
    if not dynamic.exists():
        make_dynamic_int8(
            folder / "fp32" / "backbone.onnx",
            dynamic,
            on_weight=lambda done, total: progress("dynamic: weights", done, total),
        )
    if not (folder / "optimum").exists():
        progress("optimum", 0, 1)
        reason = quantize_with_optimum(folder / "fp32" / "backbone.onnx", folder / "optimum")
        if reason is not None:
            with atomic_file(folder / WITHOUT_OPTIMUM) as temporary:
                temporary.write_text(reason)
        progress("optimum", 1, 1)


def _write_checkpoint(size: str, path: Path, seed: int) -> None:
    from rfedge.language.tokenizer import InstructionTokenizer
    from rfedge.model import save_checkpoint
    from rfedge.model.meta import random_policy
    from rfedge.train.batches.vocabulary import TABLETOP_WORDS

    config = preset(size)
    tokenizer = InstructionTokenizer.from_corpus(
        TABLETOP_WORDS, vocab_size=config.decoder.vocab_size, text_length=config.decoder.text_length
    )
    save_checkpoint(path, random_policy(config, seed), tokenizer, {"weights": f"random, seed {seed}"})
