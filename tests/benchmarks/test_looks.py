"""`rfedge bench looks`: what it compares, its gate and its sheet of pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
import typer

from rfedge.benchmarks.success.looks import (
    GAP,
    TILE,
    LooksPlan,
    LooksReport,
    PictureDifference,
    RenderedState,
    assert_levels,
    run_looks,
    save_sheet,
)
from rfedge.cli.bench.app import bench_app
from rfedge.envs.calvin.environment import PYTHON_VARIABLE
from rfedge.errors import BackendUnavailableError, ConfigError, GateError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATE_SIZE, STATIC_IMAGE_SHAPE, Observation
from rfedge.records.machine import provenance
from tests.envs.calvin_install import calvin_python
from tests.errors import raises

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def _call(*arguments: object) -> None:
    app(args=["bench", "looks", *map(str, arguments)], standalone_mode=False)


def _seen(level: int) -> Observation:
    static, gripper = (np.full(shape, level, dtype=np.uint8) for shape in (STATIC_IMAGE_SHAPE, GRIPPER_IMAGE_SHAPE))
    return Observation(static=static, gripper=gripper, state=np.zeros(STATE_SIZE), task="turn on")


def test_the_gate_looks_at_the_worse_camera() -> None:
    cameras = {name: PictureDifference(mean=mean, states=(mean,)) for name, mean in (("static", 10.0), ("gripper", 21.0))}
    report = LooksReport(
        format="rfedge-looks",
        **provenance(),
        simulator_versions={},
        scene="D",
        real_renderer="egl",
        renderer="egl",
        seed=0,
        tasks=("open_drawer",),
        differences={"playtable": cameras},
    )
    assert_levels(report, 21.0)
    with raises(GateError, "gripper camera in the looks 'playtable'", got="21.0 grey levels from egl"):
        assert_levels(report, 20.0)


def test_the_sheet_has_a_row_for_some_states_and_the_real_picture_first(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    states = [
        RenderedState("open_drawer", np.zeros(15), np.zeros(24), _seen(10 * index), {"playtable": _seen(200)})
        for index in range(20)
    ]
    save_sheet(states, tmp_path / "looks.png")
    with image.open(tmp_path / "looks.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (6 * (TILE + GAP) - GAP, 4 * (TILE + GAP) - GAP, 3)
    centres = pixels[TILE // 2 :: TILE + GAP, TILE // 2 :: TILE + GAP, 0]
    assert centres[:, 0].tolist() == centres[:, 2].tolist() == [0, 40, 80, 110, 150, 190]
    assert (centres[:, [1, 3]] == 200).all()


def test_impossible_plans_are_refused() -> None:
    with raises(ConfigError, "states", got=0):
        _call("--states", 0)
    with raises(ConfigError, expected="...did you mean 'calvin'..."):
        _call("--looks", "playtable,calvn")
    with raises(ConfigError, "looks", got=0):
        _call("--looks", ",")


def test_calvin_without_its_interpreter_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, os.fspath(tmp_path / "python"))
    with raises(BackendUnavailableError, remedy="...install_calvin.md..."):
        _call()


@pytest.mark.calvin
@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_playtable_looks_like_calvin(scene: str) -> None:
    calvin_python()
    done: list[tuple[int, int]] = []
    plan = LooksPlan(("playtable", "calvin"), scene=scene, states=4)
    report, states = run_looks(plan, on_state=lambda *state: done.append(state))
    assert done == [(index, 12) for index in range(1, 13)]
    assert report.real_renderer.startswith("egl")
    assert len(set(report.tasks)) == len(states) == 4
    assert_levels(report, 20.0)
    for camera, difference in report.differences["calvin"].items():
        assert difference.mean < report.differences["playtable"][camera].mean, "calvin_env's own meshes are nearer"


@pytest.mark.calvin
def test_the_command_writes_document_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calvin_python()
    with raises(GateError, expected="at most 0.1"):
        _call("--states", 1, "--json", "--output", tmp_path / "out", "--assert-levels", 0.1)
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    written = LooksReport.model_validate_json((tmp_path / "out" / "looks.json").read_text())
    assert LooksReport.model_validate_json(line) == written
    assert (tmp_path / "out" / "looks.png").is_file()
    assert "differences playtable static mean" in err
