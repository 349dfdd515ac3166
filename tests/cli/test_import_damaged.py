"""`rfedge import` on damaged, renamed and foreign files: one line, exit status 2, and nothing stays behind."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.import_command import one_line, run_import
from tests.model.fake_originals import Originals, write_language_model


def cut(path: Path, size: int = 300) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def change_state(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    document = torch.load(path, weights_only=True)
    change(document.get("model_state_dict", document))
    path.unlink()
    torch.save(document, path)


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("false",)


def code_in_the_pickle(files: Originals) -> None:
    torch.save({"model_state_dict": Code()}, files.roboflamingo)


def torchscript_for_clip(files: Originals) -> None:
    with zipfile.ZipFile(files.clip, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"ViT-L-14/{name}", b"")


def lost_tensors(files: Originals) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if "perceiver" in name]:
            del state[name]

    change_state(files.roboflamingo, change)
    change_state(files.openflamingo, lambda state: state.pop("perceiver.norm.bias"))


def no_number(files: Originals) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["module.perceiver.norm.bias"][3] = float("nan")

    change_state(files.roboflamingo, change)


def missing_index_shard(files: Originals) -> None:
    whole = torch.load(files.language_model / "pytorch_model.bin", weights_only=True)
    (files.language_model / "pytorch_model.bin").unlink()
    write_language_model(files.language_model, whole, shards=2)
    for path in files.language_model.glob("model-0000?-of-00002.safetensors"):
        path.unlink()


def other_shape(files: Originals) -> None:
    change_state(files.roboflamingo, lambda state: state.update({"module.perceiver.norm.bias": torch.zeros(5)}))


def other_vocabulary(files: Originals) -> None:
    name = "module.lang_encoder.transformer.wte.weight"
    change_state(files.roboflamingo, lambda state: state.update({name: state[name][:-1].clone()}))


def no_tokenizer(files: Originals) -> None:
    (files.language_model / "tokenizer.json").unlink()


def broken_tokenizer(files: Originals) -> None:
    cut(files.language_model / "tokenizer.json")


def no_language_model_config(files: Originals) -> None:
    (files.language_model / "config.json").unlink()


def unknown_language_model(files: Originals) -> None:
    path = files.language_model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "opt"}))


def pointer_of_git_lfs(files: Originals) -> None:
    files.openflamingo.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4187993304\n")


def openflamingo_as_roboflamingo(files: Originals) -> None:
    shutil.copy(files.openflamingo, files.roboflamingo)


def roboflamingo_as_openflamingo(files: Originals) -> None:
    shutil.copy(files.roboflamingo, files.openflamingo)


def language_model_as_clip(files: Originals) -> None:
    shutil.copy(files.language_model / "pytorch_model.bin", files.clip)


def nothing_there(files: Originals) -> None:
    files.clip.unlink()


def cut_roboflamingo(files: Originals) -> None:
    cut(files.roboflamingo)


def cut_language_model(files: Originals) -> None:
    cut(files.language_model / "pytorch_model.bin")


DAMAGES: dict[Callable[[Originals], None], tuple[str, ...]] = {
    cut_roboflamingo: ("got a zip archive whose end is missing",),
    cut_language_model: ("pytorch_model.bin: got a zip archive whose end",),
    code_in_the_pickle: ("got a pickle that would run posix.system", "Code is never run"),
    torchscript_for_clip: ("got an archive of TorchScript", "openai/clip-vit-large-patch14"),
    lost_tensors: ("1 tensors in no file: backbone.resampler.norm.bias", "copy it again"),
    no_number: ("backbone.resampler.norm.bias: got a value that is no number in fp32",),
    missing_index_shard: ("got no model-0000", "expected a whole repository or folder"),
    other_shape: ("1 tensors of another shape: backbone.resampler.norm.bias (5,) not (128,)",),
    other_vocabulary: ("tokenizer: got", "the rows of the embedding in checkpoint_gripper"),
    no_tokenizer: ("expected tokenizer.json",),
    broken_tokenizer: ("tokenizer.json: got", "expected a tokenizer"),
    no_language_model_config: ("expected config.json",),
    unknown_language_model: ("model_type: got opt, expected mosaic_gpt, mpt, gpt_neox, llama",),
    pointer_of_git_lfs: ("got the pointer that Git LFS leaves", "git lfs pull"),
    openflamingo_as_roboflamingo: ("RoboFlamingo file", "got no policy head"),
    roboflamingo_as_openflamingo: ("OpenFlamingo file checkpoint.pt: got a policy head", "--roboflamingo"),
    language_model_as_clip: ("CLIP file", "got no vision transformer"),
    nothing_there: ("CLIP", "got no such file"),
}


@pytest.mark.parametrize(("damage", "parts"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_set_ends_in_one_line_and_leaves_nothing(
    damage: Callable[[Originals], None], parts: tuple[str, ...], originals, tmp_path: Path, capsys
) -> None:
    given = originals["mosaic_gpt"]
    root = tmp_path / "files"
    shutil.copytree(given.clip.parent, root)
    paths = {
        name: root / path.relative_to(given.clip.parent) for name, path in vars(given).items() if isinstance(path, Path)
    }
    files = Originals(given.config, **paths)
    damage(files)
    output = tmp_path / "out" / "checkpoint"
    assert run_import(*files.arguments(), "--output", output) == 2
    line = one_line(capsys)
    for part in parts:
        assert part in line
    assert not output.parent.exists() or not list(output.parent.iterdir())


@pytest.mark.parametrize(
    ("base", "openflamingo", "parts"),
    [
        ("mosaic_gpt", "gpt_neox", ("got blocks of gpt_neox, expected mosaic_gpt",)),
        ("llama", "mpt", ("got blocks of mosaic_gpt or mpt, expected llama",)),
        ("mosaic_gpt", "mpt", ("got width 32, cross-attention every 4th block, expected", "every 1st block of checkpoint_")),
    ],
)
def test_files_of_two_models_are_told_apart(base: str, openflamingo: str, parts, originals, tmp_path: Path, capsys) -> None:
    arguments = [*originals[base].arguments("--openflamingo"), "--openflamingo", originals[openflamingo].openflamingo]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint") == 2
    line = one_line(capsys)
    for part in (*parts, "Give files of the same model."):
        assert part in line
