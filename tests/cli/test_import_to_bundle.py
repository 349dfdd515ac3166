"""The import guide's commands, one after the other, on stand-ins in the released layouts: from weights to an int8 bundle."""

import re
import shlex
from pathlib import Path

import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.cli.app import main
from tests.model.fake_originals import DECODERS, Originals
from tests.tool_modules import ROOT

GUIDE = (ROOT / "docs/how-to/import_original_weights.md").read_text()
SOURCES = ("--roboflamingo", "--clip", "--lm")


def guided_commands() -> list[list[str]]:
    """Return the words of every `rfedge` line in the guide's first two code blocks."""
    blocks = re.findall(r"```\n(.*?)```", GUIDE, flags=re.DOTALL)[:2]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rfedge ")]


def on_stand_ins(words: list[str], originals: Originals, data: Path) -> list[str]:
    """Put stand-ins in place of the released files, their sizes in place of the preset, data in place of CALVIN."""
    given = dict(zip(*[iter(originals.arguments())] * 2, strict=True))
    changed = list(words)
    for flag in SOURCES:
        if flag in changed:
            changed[changed.index(flag) + 1] = given[flag]
    if "--config" in changed:
        del changed[changed.index("--config") : changed.index("--config") + 2]
    return [str(data) if word == "CALVIN/task_D_D" else word for word in changed]


def test_the_guide_leads_from_import_to_a_bundle() -> None:
    commands = guided_commands()
    assert [words[0] for words in commands] == ["import", "demos", "export", "verify", "inspect"]


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code, words


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "task_D_D"
    run("demos", "--output", folder, "--tasks", "open_drawer,turn_on_led", "--episodes-per-task", 4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", tuple(DECODERS))
def test_released_layouts_become_bundles(
    kind: str, originals: dict[str, Originals], demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in guided_commands():
        if words[0] == "export":
            words = [*words, "--force"]  # weights that nobody trained miss the gates of an action
        run(*on_stand_ins(words, originals[kind], demonstrations))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.precision.requested == "int8"
    assert bundle.manifest.calibration is not None
    assert bundle.policy.decoder.kind == kind
