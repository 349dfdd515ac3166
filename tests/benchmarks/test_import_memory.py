"""The measurement of imports, on stand-ins small enough to write in a moment."""

from pathlib import Path

import pytest
import torch

from rfedge.benchmarks.studies.import_memory import Cost, ImportMemoryReport, assert_peak, write_stand_ins
from rfedge.cli.app import main
from rfedge.config import LSTMHeadConfig, MPTConfig, PolicyConfig, ResamplerConfig, VisionConfig
from rfedge.errors import GateError
from rfedge.model import load_checkpoint
from rfedge.records.machine import provenance

CONFIG = PolicyConfig(
    name="imported",
    vision=VisionConfig(image_size=28, patch_size=14, width=128, layers=1, heads=2),
    resampler=ResamplerConfig(layers=1, latents=4, heads=2),
    decoder=MPTConfig(
        width=32, layers=2, heads=2, vocab_size=120, text_length=32, cross_attention_heads=2, feature="last_block_input"
    ),
    head=LSTMHeadConfig(hidden_size=16, layers=2, mlp_sizes=(16, 8)),
)


def test_stand_ins_are_whole_sets_of_originals(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_stand_ins(files, CONFIG)
    document = torch.load(files / "roboflamingo.pth", weights_only=True)
    state = document["model_state_dict"]
    first, second = (f"module.lang_encoder.{path}.ff.1.weight" for path in _paths())
    assert state[first].data_ptr() == state[second].data_ptr()  # as in the original, stored once
    trained = sum(tensor.numel() for name, tensor in state.items() if "old_decoder_blocks" not in name)
    moments = document["optimizer_state_dict"]["state"].values()
    assert sum(moment["exp_avg"].numel() for moment in moments) < trained
    assert not list(files.glob("noise"))
    flags = [
        "--roboflamingo",
        "roboflamingo.pth",
        "--openflamingo",
        "checkpoint.pt",
        "--clip",
        "open_clip_pytorch_model.bin",
    ]
    given = [part if part.startswith("--") else str(files / part) for part in [*flags, "--lm", "lm"]]
    with pytest.raises(SystemExit) as raised:
        main(["import", *given, "--output", str(tmp_path / "checkpoint")])
    assert raised.value.code == 0
    assert load_checkpoint(tmp_path / "checkpoint").config == CONFIG


def _paths() -> tuple[str, str]:
    return "transformer.blocks.1.gated_cross_attn_layer", "gated_cross_attn_layers.1"


def test_the_gate_compares_the_peak_with_the_checkpoint() -> None:
    cost = Cost(seconds=1.0, peak_rss_bytes=150, peak_per_checkpoint=1.5)
    report = ImportMemoryReport(
        **provenance(),
        preset="M-3B",
        dtype="fp32",
        source_bytes={"a": 1},
        checkpoint_bytes=100,
        num_files=1,
        import_=cost,
        load=cost,
    )
    assert_peak(report, 1.6)
    with pytest.raises(GateError, match="got 1.50 times the checkpoint, expected below 1.5"):
        assert_peak(report, 1.5)
