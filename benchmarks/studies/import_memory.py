"""What `rfedge import`, and loading what it wrote, cost at real size: peak memory against the model's size, and seconds.

The originals are stand-ins with random weights in the released layouts, optimizer state included, because the time and
memory of an import depend on names, shapes and dtypes alone. Run it as `python -m rfedge.benchmarks.studies.import_memory`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rfedge.benchmarks.studies.original_layouts import (
    Shapes,
    clip_shapes,
    language_model_config,
    language_model_shapes,
    openflamingo_shapes,
    roboflamingo_shapes,
)
from rfedge.config import PolicyConfig, preset
from rfedge.errors import GateError, RfedgeError
from rfedge.io.atomic import atomic_directory
from rfedge.records.machine import Measurement, provenance
from rfedge.records.record import Record

if TYPE_CHECKING:
    import torch

__all__ = ["Cost", "ImportMemoryPlan", "ImportMemoryReport", "assert_peak", "run_import_memory", "write_stand_ins"]

IMPORT_MEMORY_SCHEMA_VERSION: Final = 1
# Rows of the language models' own vocabularies, before OpenFlamingo fits them to the tokenizer.
_ROWS: Final = {"mosaic_gpt": 50432, "mpt": 50432, "gpt_neox": 50432, "llama": 32000}
_NEW_TOKENS: Final = 3

# In the process that is measured: run, then write down the most memory that it ever held. The kernel's VmHWM is the same
# figure as ru_maxrss, which would start at the size of the process that started this one.
_IMPORT: Final = """
import json, sys
from pathlib import Path
from rfedge.records.machine import peak_rss_bytes
from rfedge.cli.app import main
try:
    main(sys.argv[2:])
except SystemExit as error:
    status = error.code or 0
Path(sys.argv[1]).write_text(json.dumps({"status": status, "peak_rss_bytes": peak_rss_bytes()}))
"""
_LOAD: Final = """
import json, sys
from pathlib import Path
from rfedge.records.machine import peak_rss_bytes
from rfedge.model import load_checkpoint
policy = load_checkpoint(Path(sys.argv[2])).policy
for parameter in policy.parameters():
    parameter.detach().sum()  # a mapped weight takes memory when it is first read
Path(sys.argv[1]).write_text(json.dumps({"status": 0, "peak_rss_bytes": peak_rss_bytes()}))
"""


@dataclass(frozen=True)
class ImportMemoryPlan:
    """What to measure.

    Attributes:
        preset: whose files to write.
        folder: where to; needs about four times the checkpoint's size and is empty again afterwards.
        dtype: of the checkpoint.
    """

    preset: str
    folder: Path
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class Cost(Record):
    """One process: its time, its peak memory, and that peak divided by the size of the weights on disk."""

    seconds: float
    peak_rss_bytes: int
    peak_per_checkpoint: float


class ImportMemoryReport(Measurement):
    """The whole document.

    Attributes:
        source_bytes: size of each stand-in.
        checkpoint_bytes: size of the weights written, in `num_files` files.
        import_: reading the stand-ins and writing the checkpoint; the sources' sums included.
        load: reading the checkpoint and every weight of it once, as float32.
    """

    format: Literal["rfedge-import-memory"] = "rfedge-import-memory"
    schema_version: int = IMPORT_MEMORY_SCHEMA_VERSION
    preset: str
    dtype: str
    source_bytes: dict[str, int]
    checkpoint_bytes: int
    num_files: int
    import_: Cost
    load: Cost


def run_import_memory(plan: ImportMemoryPlan, *, on_stage: Callable[[str], None] = lambda _: None) -> ImportMemoryReport:
    """Write the stand-ins, import them in a process of its own, load the result in another, remove everything.

    Raises:
        ConfigError: no such preset.
        RuntimeError: a process failed; the text is what it printed last.
    """
    config = preset(plan.preset)
    plan.folder.mkdir(parents=True, exist_ok=True)
    work = plan.folder / f"import-memory-{plan.preset}"
    try:
        on_stage("write the originals' stand-ins")
        with atomic_directory(work, overwrite=True) as temporary:
            write_stand_ins(temporary, config)
        sources = {
            path.relative_to(work).as_posix(): path.stat().st_size for path in sorted(work.rglob("*")) if path.is_file()
        }
        on_stage("import")
        output = work / "checkpoint"
        flags = ("--roboflamingo", "--openflamingo", "--clip", "--lm")
        paths = ("roboflamingo.pth", "checkpoint.pt", "open_clip_pytorch_model.bin", "lm")
        given = [str(part) for flag, name in zip(flags, paths, strict=True) for part in (flag, work / name)]
        arguments = ["import", *given, "--config", plan.preset, "--dtype", plan.dtype, "--output", str(output)]
        importing, import_seconds = _measured(_IMPORT, work, arguments)
        weights = sorted(output.glob("*.safetensors"))
        checkpoint_bytes = sum(path.stat().st_size for path in weights)
        on_stage("load")
        loading, load_seconds = _measured(_LOAD, work, [str(output)])
    finally:
        shutil.rmtree(work, ignore_errors=True)

    def cost(peak_rss_bytes: int, seconds: float) -> Cost:
        return Cost(seconds=seconds, peak_rss_bytes=peak_rss_bytes, peak_per_checkpoint=peak_rss_bytes / checkpoint_bytes)

    return ImportMemoryReport(
        **provenance(),
        preset=plan.preset,
        dtype=plan.dtype,
        source_bytes=sources,
        checkpoint_bytes=checkpoint_bytes,
        num_files=len(weights),
        import_=cost(importing, import_seconds),
        load=cost(loading, load_seconds),
    )


def assert_peak(report: ImportMemoryReport, limit: float) -> None:
    """Check that the import's peak memory stays below `limit` times the checkpoint.

    Raises:
        GateError: it does not; the text has both.
    """
    if report.import_.peak_per_checkpoint >= limit:
        raise GateError(
            f"peak memory of the import of {report.preset}",
            got=f"{report.import_.peak_per_checkpoint:.2f} times the checkpoint",
            expected=f"below {limit:g}",
            remedy="Look for a tensor or a mapping that is kept.",
        )


def _measured(code: str, folder: Path, arguments: Sequence[str]) -> tuple[int, float]:
    record = folder / "peak.json"
    started_s = time.perf_counter()
    command = [sys.executable, "-c", code, str(record), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started_s
    document = json.loads(record.read_bytes()) if record.is_file() else {"status": result.returncode}
    if document["status"] != 0:
        raise RuntimeError(result.stderr[-2000:])
    return int(document["peak_rss_bytes"]), seconds


def write_stand_ins(folder: Path, config: PolicyConfig) -> None:
    """Write one set of originals with random weights: as large as the real ones, with little memory.

    Args:
        folder: exists; gets roboflamingo.pth, checkpoint.pt, open_clip_pytorch_model.bin and lm/.
        config: of the policy.
    """
    decoder = config.decoder
    rows = _ROWS[decoder.kind]
    language_model = folder / "lm"
    language_model.mkdir()
    (language_model / "config.json").write_text(json.dumps(language_model_config(decoder, rows)))
    _write_tokenizer(language_model / "tokenizer.json", decoder.vocab_size - _NEW_TOKENS)
    sets = {
        "clip": clip_shapes(config.vision),
        "lm": language_model_shapes(decoder, rows),
        "openflamingo": openflamingo_shapes(config),
        "roboflamingo": roboflamingo_shapes(config),
    }
    with _noise(folder / "noise", max(_size_bytes(shape) for shapes in sets.values() for shape in shapes.values())) as draw:
        _save(folder / "open_clip_pytorch_model.bin", _tensors(sets["clip"], draw))
        _save(language_model / "pytorch_model.bin", _tensors(sets["lm"], draw))
        _save(folder / "checkpoint.pt", _tensors(sets["openflamingo"], draw))
        state = _tensors(sets["roboflamingo"], draw)
        trained = [shape for name, shape in sets["roboflamingo"].items() if _is_trained(name, config)]
        moments = {
            index: {"exp_avg": draw(shape), "exp_avg_sq": draw(shape), "step": draw(())}
            for index, shape in enumerate(trained)
        }
        document = {
            "epoch": 4,
            "model_state_dict": state,
            "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
            "lr_scheduler_state_dict": {"last_epoch": 0},
        }
        _save(folder / "roboflamingo.pth", document)


def _is_trained(name: str, config: PolicyConfig) -> bool:
    """Whether the optimizer holds moments of this tensor: it is not frozen, no alias, and something reached it."""
    aliases = (".old_decoder_blocks.", ".gated_cross_attn_layers.", ".decoder_layer.")
    dead = f".{config.decoder.layers - 1}.gated_cross_attn_layer."
    is_dead = config.decoder.feature == "last_block_input" and dead in name
    return not is_dead and not any(part in name for part in aliases)


def _tensors(shapes: Shapes, draw: Callable[[tuple[int, ...]], torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    fused: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        # The two paths of a cross-attention share one storage, so that the file holds it once.
        index_and_rest = name.split(".gated_cross_attn_layers.")[-1]
        if ".gated_cross_attn_layers." in name and index_and_rest in fused:
            tensors[name] = fused[index_and_rest]
            continue
        tensors[name] = draw(shape)
        before, mark, rest = name.partition(".gated_cross_attn_layer.")
        if mark:
            fused[f"{before.rsplit('.', 1)[-1]}.{rest}"] = tensors[name]
    return tensors


@contextmanager
def _noise(path: Path, size_bytes: int) -> Iterator[Callable[[tuple[int, ...]], torch.Tensor]]:
    """Yield a function that returns tensors of normal numbers, each a storage of its own over the same mapped file."""
    import numpy as np
    import torch

    rng, block = np.random.default_rng(0), 1 << 22
    with path.open("wb") as file:
        for _ in range(-(-size_bytes // (4 * block))):
            file.write((0.02 * rng.standard_normal(block, dtype=np.float32)).data)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        storage = torch.UntypedStorage.from_file(str(path), False, _size_bytes(shape))  # noqa: FBT003 - its signature
        return torch.tensor([], dtype=torch.float32).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

    try:
        yield draw
    finally:
        path.unlink()


def _size_bytes(shape: tuple[int, ...]) -> int:
    size = 4
    for length in shape:
        size *= length
    return size


def _save(path: Path, document: Any) -> None:
    import torch

    torch.save(document, path)


def _write_tokenizer(path: Path, count: int) -> None:
    """Write a tokenizer of `count` words; only their number matters here."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0, "<unk>": 1} | {f"word{index}": index for index in range(2, count)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(path))


def _main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and time of `rfedge import` at real size.")
    parser.add_argument("--preset", default="M-3B", help="Whose files to write.")
    parser.add_argument("--folder", type=Path, required=True, help="Needs about four times the checkpoint; emptied again.")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="Of the checkpoint.")
    parser.add_argument("--assert-peak", type=float, help="Fail unless the peak is below this many times the checkpoint.")
    parser.add_argument("--output", type=Path, help="Write the JSON document here too.")
    arguments = parser.parse_args()
    plan = ImportMemoryPlan(arguments.preset, arguments.folder, arguments.dtype)

    def on_stage(stage: str) -> None:
        sys.stderr.write(f"{stage}\n")

    report = run_import_memory(plan, on_stage=on_stage)
    if arguments.output is not None:
        report.write(arguments.output)
    sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    if arguments.assert_peak is not None:
        assert_peak(report, arguments.assert_peak)


if __name__ == "__main__":
    try:
        _main()
    except RfedgeError as error:
        sys.exit(f"import_memory: {error}")
