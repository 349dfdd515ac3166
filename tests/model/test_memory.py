"""Resident memory: of a policy at its real size with random weights, and of importing original files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rfedge.config import LSTMHeadConfig, MPTConfig, PolicyConfig, ResamplerConfig, VisionConfig
from rfedge.model import load_checkpoint
from tests.model.stand_ins import write_stand_ins

# In processes of their own: VmHWM, unlike ru_maxrss, does not start at the size of the process that started them.
STEP = """
import sys, numpy as np, torch
from rfedge.config import preset
from rfedge.contract import policy_contract
from rfedge.model.meta import random_policy
from rfedge.records.machine import peak_rss_bytes
dtype = getattr(torch, sys.argv[2])
policy = random_policy(preset(sys.argv[1]), 0, dtype)
contract = policy_contract(policy.config)
arrays = contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=14)
tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
inputs = {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}
state = {spec.name: torch.zeros(spec.shape, dtype=dtype) for spec in contract.head.inputs[1:]}
with torch.inference_mode():
    pose, gripper, *_ = policy.head(policy.backbone(**inputs)[:, None], **state)
assert torch.isfinite(pose).all() and torch.isfinite(gripper).all()
print(sum(one.numel() for one in policy.parameters()), peak_rss_bytes())
"""
IMPORT = """
import sys
from rfedge.cli.app import main
from rfedge.records.machine import peak_rss_bytes
try:
    main(sys.argv[1:])
except SystemExit as error:
    assert not error.code, error.code
print(peak_rss_bytes())
"""


def config(width: int, layers: int, vocab_size: int) -> PolicyConfig:
    return PolicyConfig(
        name="imported",
        vision=VisionConfig(image_size=28, patch_size=14, width=128, layers=1, heads=2),
        resampler=ResamplerConfig(layers=1, latents=4, heads=2),
        decoder=MPTConfig(
            width=width,
            layers=layers,
            heads=2,
            vocab_size=vocab_size,
            text_length=32,
            cross_attention_heads=2,
            feature="last_block_input",
        ),
        head=LSTMHeadConfig(hidden_size=16, layers=2, mlp_sizes=(16, 8)),
    )


def measured(code: str, *arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(word) for word in done.stdout.split()[-2:] if word.isdigit()]


def import_peak_bytes(files: Path, output: Path) -> int:
    flags = ("--roboflamingo", "roboflamingo.pth", "--openflamingo", "checkpoint.pt")
    flags += ("--clip", "open_clip_pytorch_model.bin", "--lm", "lm")
    given = [part if part.startswith("--") else str(files / part) for part in flags]
    return measured(IMPORT, "import", *given, "--output", str(output))[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("float32", 4)])
def test_the_3b_policy_takes_a_step_in_little_more_than_its_weights(dtype: str, bytes_each: int) -> None:
    num_parameters, peak_bytes = measured(STEP, "M-3B", dtype)
    assert num_parameters == 2_599_523_639
    assert peak_bytes < 1.15 * bytes_each * num_parameters


def test_stand_ins_are_whole_sets_of_originals(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_stand_ins(files, config(32, 2, 120))
    document = torch.load(files / "roboflamingo.pth", weights_only=True)
    state = document["model_state_dict"]
    first, second = (
        f"module.lang_encoder.{path}.ff.1.weight"
        for path in ("transformer.blocks.1.gated_cross_attn_layer", "gated_cross_attn_layers.1")
    )
    assert state[first].data_ptr() == state[second].data_ptr()  # as in the original, stored once
    trained = sum(tensor.numel() for name, tensor in state.items() if "old_decoder_blocks" not in name)
    moments = document["optimizer_state_dict"]["state"].values()
    assert sum(moment["exp_avg"].numel() for moment in moments) < trained


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_import_never_holds_what_it_reads(tmp_path: Path) -> None:
    peaks, source_bytes = [], 0
    for name, one in (("small", config(32, 2, 120)), ("large", config(768, 12, 5000))):
        files, output = tmp_path / name, tmp_path / f"{name}-checkpoint"
        files.mkdir()
        write_stand_ins(files, one)
        peaks.append(import_peak_bytes(files, output))
        assert load_checkpoint(output).config == one
        source_bytes = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    print(f"{source_bytes / 1e6:.0f} MB of files: peak {peaks[0] / 1e6:.0f} MB -> {peaks[1] / 1e6:.0f} MB")
    assert peaks[1] - peaks[0] < 0.4 * source_bytes
