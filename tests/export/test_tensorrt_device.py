"""Engines on a GPU: what only the device can show. Run with `pytest -m trt` where a GPU and TensorRT are."""

from pathlib import Path

import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import TIMING_CACHE_NAME, find_engine
from rfedge.errors import BackendUnavailableError
from rfedge.export.tensorrt.options import BuildOptions
from rfedge.export.tensorrt.pipeline import build_bundle
from rfedge.nvidia.tensorrt import TARGETS, TensorRt, load_tensorrt
from tests.export.tensorrt_bundles import PRECISIONS, write_tiny_bundles

pytestmark = [pytest.mark.trt, pytest.mark.gpu]


@pytest.fixture(scope="module", params=TARGETS)
def module(request: pytest.FixtureRequest) -> TensorRt:
    try:
        loaded = load_tensorrt(request.param)
        loaded.device_target()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    return loaded


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tiny_bundles(tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_built_here_is_the_one_found_here(module: TensorRt, bundles: dict[str, Path], precision: str) -> None:
    result = build_bundle(bundles[precision], BuildOptions(target=module.name, stage="backbone", overwrite=True))[0]
    assert result.audit.source in ("engine inspector", "builder's description of the engine")
    assert result.audit.missed == ()
    plan, record = find_engine(load_bundle(bundles[precision]), "backbone", module.device_target())
    assert record == result.record
    engine = module.trt.Runtime(module.trt.Logger()).deserialize_cuda_engine(plan.read_bytes())
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    assert names == {"image_static", "image_gripper", "text_embedding", "text_mask", "feature"}


def test_the_timing_cache_is_kept_and_a_damaged_one_is_replaced(module: TensorRt, bundles: dict[str, Path]) -> None:
    if not module.keeps_timing_cache:
        pytest.skip("TensorRT for RTX keeps no timing cache")
    options = BuildOptions(target=module.name, stage="backbone", overwrite=True)
    first = build_bundle(bundles["fp32"], options)[0]
    cache = first.planned.folder / TIMING_CACHE_NAME
    assert cache.stat().st_size > 0
    again = build_bundle(bundles["fp32"], options)[0]
    assert again.record.build_seconds < first.record.build_seconds
    assert again.notes == ()
    cache.write_bytes(b"not a timing cache")
    mended = build_bundle(bundles["fp32"], options)[0]
    assert mended.notes == ("the timing cache did not fit this device or was damaged; it starts anew",)
    assert cache.stat().st_size > 100
