"""Mixed precision: the budget, the plan, the cache, and on `tiny` the search with everything it measures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfedge.bundle.traces import compare_traces
from rfedge.config import PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.export.int8.options import PLAIN
from rfedge.export.int8.rounded_store import RoundedStore
from rfedge.export.mixed.blocks import kept_float, quantizable_blocks
from rfedge.export.mixed.plan import Budget, choose_plan, order_of_removal, parse_budget
from rfedge.export.mixed.record import SearchRecord, draw_sensitivity
from rfedge.export.mixed.search import ErrorMeter, MeasurementCache, MixedSearch, search_key, search_plan
from rfedge.export.mixed.speed import _Profiled, call_times_ms, profile_blocks, saved_ms
from rfedge.export.parity import onnx_rollout
from rfedge.export.passes.standard import apply_passes
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import build_policy
from tests.errors import raises

Inputs = dict[str, npt.NDArray[Any]]
CONFIG = preset("tiny")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    policy, contract = build_policy(CONFIG, seed=0), policy_contract(CONFIG)
    trace_backbone(policy, contract.backbone, folder / "traced.onnx")
    apply_passes(folder / "traced.onnx", folder / "float.onnx")
    trace_head(policy, contract.head, folder / "head.onnx")
    return folder / "float.onnx", folder / "head.onnx"


@pytest.fixture(scope="module")
def frames() -> list[Inputs]:
    return sample(0, 3)


@pytest.fixture(scope="module")
def episodes() -> list[list[Inputs]]:
    return [sample(1, 4), sample(2, 3)]


def sample(seed: int, count: int, config: PolicyConfig = CONFIG) -> list[Inputs]:
    rng = np.random.default_rng(seed)
    return [policy_contract(config).backbone.sample_inputs(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all searches of this file keep their measurements in."""
    return tmp_path_factory.mktemp("searched")


@pytest.fixture
def search(graphs: tuple[Path, Path], frames: list[Inputs], episodes: list[list[Inputs]], searched: Path) -> Iterator[Any]:
    def run(limit: float, folder: Path = searched) -> SearchRecord:
        settings = MixedSearch(Budget("action_max_error", limit), episodes, folder, num_rounds=5)
        return search_plan(CONFIG, *graphs, frames, PLAIN, settings)[0]

    return run


# --- the budget


def test_a_budget_is_read() -> None:
    assert parse_budget("action_error=0.01") == Budget("action_max_error", 0.01)
    assert parse_budget(" action_mean_error = 1e-3 ") == Budget("action_mean_error", 0.001)
    assert not Budget("action_max_error", 1.0).holds({"action_max_error": float("nan")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.01", "NAME=NUMBER"),
        ("action_eror=0.01", "...'action_error'..."),
        ("action_error=small", "a number after ="),
        ("action_error=-1", "a number of 0 or more after ="),
        ("action_error=nan", "a number of 0 or more after ="),
    ],
)
def test_a_wrong_budget_is_one_line(text: str, expected: str) -> None:
    with raises(ConfigError, expected=expected) as error:
        parse_budget(text)
    assert "\n" not in str(error.value)


# --- the plan


def squares(error: Mapping[str, float]) -> Any:
    return lambda chosen: float(np.sqrt(sum(error[name] ** 2 for name in chosen)))


def test_what_pays_worst_leaves_first_and_what_saves_nothing_is_never_in() -> None:
    saved = {"cheap": 2.0, "dear": 1.0, "slower": -0.5, "no better": 0.0}
    error = {"cheap": 0.1, "dear": 0.3, "slower": 0.0, "no better": 0.0}
    assert order_of_removal(saved, error) == ["dear", "cheap"]
    assert choose_plan(saved, error, lambda _: True) == {"cheap", "dear"}
    assert choose_plan(saved, error, lambda chosen: squares(error)(chosen) <= 0.2) == {"cheap"}
    assert choose_plan(saved, error, lambda _: False) == frozenset()


@given(
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.tuples(st.floats(-1, 5), st.floats(0, 1)), min_size=1),
    st.floats(0, 2),
    st.integers(8, 40),
)
@settings(max_examples=100, deadline=None)
def test_a_plan_is_within_the_budget_and_asks_a_bounded_number_of_times(
    blocks: dict[str, tuple[float, float]], limit: float, most: int
) -> None:
    saved = {name: pair[0] for name, pair in blocks.items()}
    error = {name: pair[1] for name, pair in blocks.items()}
    asked = []

    def judge(chosen: frozenset[str]) -> bool:
        asked.append(chosen)
        return bool(squares(error)(chosen) <= limit)

    plan = choose_plan(saved, error, judge, most_measurements=most)
    assert squares(error)(plan) <= limit
    assert all(saved[name] > 0 for name in plan)
    assert len(asked) <= most
    assert all(asked)
    if most == 40:  # enough to try all that left: nothing could be put back
        assert all(not judge(plan | {name}) for name in blocks if saved[name] > 0 and name not in plan)


# --- the cache


def test_measurements_survive_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "measurements.jsonl"
    cache = MeasurementCache(path)
    cache.put({"x": 1.0}, int8=["one"])
    cache.put({"x": 2.0}, int8=["two"], num=2)
    path.write_bytes(path.read_bytes() + b'{"of": {"int8": ["three"]}, "val')
    again = MeasurementCache(path)
    found = [again.get(int8=["one"]), again.get(num=2, int8=["two"]), again.get(int8=["three"])]
    assert found == [{"x": 1.0}, {"x": 2.0}, None]
    assert again.num_reused == 2
    again.put({"x": 3.0}, int8=["three"])
    assert [json.loads(line)["of"]["int8"] for line in path.read_text().splitlines()] == [["one"], ["two"], ["three"]]


def test_another_graph_frame_or_option_is_another_search(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    frames, episodes = sample(0, 2), [sample(1, 2)]
    key = search_key(graphs, frames, episodes, asdict(PLAIN))
    assert key == search_key(graphs, sample(0, 2), [sample(1, 2)], asdict(PLAIN))
    model = onnx.load(graphs[0])
    model.graph.initializer[0].name += ""
    model.producer_version = "another"
    onnx.save(model, tmp_path / "other.onnx")
    others = [
        search_key([tmp_path / "other.onnx", graphs[1]], frames, episodes, asdict(PLAIN)),
        search_key(graphs, sample(5, 2), episodes, asdict(PLAIN)),
        search_key(graphs, frames, [sample(1, 1), sample(1, 2)[1:]], asdict(PLAIN)),
        search_key(graphs, frames, episodes, {"rounding": "fancy"}),
    ]
    assert len({key, *others}) == 5


def test_stored_matmuls_give_the_same_graph_without_a_frame_being_run(
    graphs: tuple[Path, Path], frames: list[Inputs], tmp_path: Path
) -> None:
    store = RoundedStore(tmp_path / "rounded")
    calls: list[str] = []
    for name in ("first.onnx", "second.onnx"):
        calls.clear()
        quantize_int8(graphs[0], tmp_path / name, frames, store=store, progress=lambda stage, *_: calls.append(stage))
    assert set(calls) == {"round weights"}
    quantize_int8(graphs[0], tmp_path / "without.onnx", frames)
    arrays = [
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / name).graph.initializer}
        for name in ("first.onnx", "second.onnx", "without.onnx")
    ]
    for other in arrays[1:]:
        assert arrays[0].keys() == other.keys()
        assert all(np.array_equal(array, other[name]) for name, array in arrays[0].items())
    for path in (tmp_path / "rounded").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    quantize_int8(graphs[0], tmp_path / "repaired.onnx", frames, store=store)
    assert (tmp_path / "repaired.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()


# --- speed and sensitivity


def test_every_block_takes_time_in_both_forms(graphs: tuple[Path, Path], frames: list[Inputs], tmp_path: Path) -> None:
    blocks = quantizable_blocks(graphs[0])
    meter = make_meter(graphs, frames, [], tmp_path)
    everything = meter.write(blocks, tmp_path)
    in_float, in_int8 = profile_blocks([graphs[0], everything], blocks, frames, num_rounds=4)
    assert set(in_float) == set(in_int8) == set(blocks)
    for times in (in_float, in_int8):
        assert all(values.shape == (4,) and (values > 0).all() for values in times.values())
    assert set(saved_ms(in_float, in_int8)) == set(blocks)
    assert [len(times) for times in call_times_ms({"float": graphs[0]}, frames, num_rounds=3).values()] == [3]


def test_no_node_of_a_call_counts_for_two_blocks(graphs: tuple[Path, Path], frames: list[Inputs], tmp_path: Path) -> None:
    profiled = _Profiled(graphs[0], quantizable_blocks(graphs[0]), tmp_path / "profile")
    for done in range(4):
        profiled.run(frames[done % len(frames)])
    of_blocks_ms = sum(profiled.times_ms(0, 4).values())
    (profile,) = (tmp_path / "profile").glob("profile*.json")
    events = sorted(json.loads(profile.read_text()), key=lambda event: event["ts"])
    calls_ms = np.array([event["dur"] / 1e3 for event in events if event["name"] == "model_run"])
    nodes_ms = np.array([event["dur"] / 1e3 for event in events if event["name"].endswith("_kernel_time")]).sum()
    assert (of_blocks_ms < calls_ms).all()
    assert np.sum(of_blocks_ms) > 0.2 * nodes_ms


def make_meter(graphs: tuple[Path, Path], frames: list[Inputs], episodes: list[list[Inputs]], folder: Path) -> ErrorMeter:
    cache, store = MeasurementCache(folder / "measurements.jsonl"), RoundedStore(folder / "rounded")
    blocks = quantizable_blocks(graphs[0])
    return ErrorMeter(CONFIG, *graphs, blocks, frames, episodes, PLAIN, cache, store, folder)


def test_a_block_alone_is_measured_as_a_graph_with_only_that_block_in_int8(
    graphs: tuple[Path, Path], frames: list[Inputs], episodes: list[list[Inputs]], tmp_path: Path
) -> None:
    meter = make_meter(graphs, frames, episodes, tmp_path)
    block = next(iter(meter.blocks))
    quantize_int8(graphs[0], tmp_path / "q.onnx", frames, keep_float=kept_float(meter.blocks, [block]), options=PLAIN)
    wanted = compare_traces(
        onnx_rollout(CONFIG, *graphs, episodes), onnx_rollout(CONFIG, tmp_path / "q.onnx", graphs[1], episodes)
    )
    found = meter.measure([block])
    assert found["action_max_error"] == pytest.approx(wanted["action_max_error"], rel=0.05)
    assert found["action_max_error"] > 0
    assert meter.measure([])["action_max_error"] == 0.0


# --- the search


def test_the_budget_rules_the_plan(search: Any) -> None:
    nothing = search(0.0)
    assert {block.precision for block in nothing.blocks.values()} == {"fp32"}
    assert nothing.metrics["action_max_error"] == 0.0
    everything = search(1e9)
    for block in everything.blocks.values():
        assert (block.precision == "int8") == (block.saved_ms > 0), block
    assert {"mixed/int8", "mixed/uniform", "mixed/fp32"} < set(everything.time_ratios)
    largest = everything.metrics["action_max_error"]
    part = search(largest / 2)
    assert part.metrics["action_max_error"] <= largest / 2
    again = search(largest / 2)
    assert again.num_measured == 0
    assert part.uniform_metrics == everything.uniform_metrics
    assert again.model_dump(exclude={"num_measured", "num_reused"}) == part.model_dump(
        exclude={"num_measured", "num_reused"}
    )
    assert SearchRecord.model_validate_json(part.model_dump_json()) == part


def test_the_evidence_is_drawn(search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    record = search(1e9)
    draw_sensitivity(record, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(BackendUnavailableError, "--chart", got="no matplotlib", remedy="pip install 'rfedge[plots]'."):
        draw_sensitivity(record, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


KILLED = """
import sys
from pathlib import Path
from tests.export.test_mixed import CONFIG, PLAIN, Budget, MixedSearch, sample, search_plan
backbone, head, folder = map(Path, sys.argv[1:])
search = MixedSearch(Budget("action_max_error", 0.0), [sample(1, 4), sample(2, 3)], folder, num_rounds=5)
search_plan(CONFIG, backbone, head, sample(0, 3), PLAIN, search, progress=lambda *told: print(*told, flush=True))
"""


def test_a_killed_search_goes_on_where_it_stopped(graphs: tuple[Path, Path], search: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *map(str, graphs), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    for line in process.stdout:
        if line.startswith("sensitivity 3 ") or time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()

    def read() -> list[dict[str, Any]]:
        return [json.loads(line)["of"] for line in next(tmp_path.rglob("*.jsonl")).read_text().splitlines()]

    measured = read()
    assert 3 <= sum(of["measure"] == "error" for of in measured) <= 4
    record = search(0.0, tmp_path)
    assert len(list(tmp_path.glob("*/measurements.jsonl"))) == 1
    assert record.num_reused >= len(measured)
    assert len(read()) == len({json.dumps(of) for of in read()}), "nothing is measured twice"
    # what a killed search left behind of its work is gone
    assert [path.name for path in next(tmp_path.iterdir()).iterdir() if path.name.startswith("work-")] == []
