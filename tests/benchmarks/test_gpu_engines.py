"""The study for a GPU, as far as a machine without one allows."""

import numpy as np
import pytest
import torch

from rfedge.benchmarks.studies.gpu_engines import FORMS, _time, main
from tests.export.tensorrt_bundles import load_rtx


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the study itself")
def test_without_a_gpu_all_is_done_that_needs_none(capfd: pytest.CaptureFixture[str]) -> None:
    load_rtx()
    assert main(["--preset", "tiny"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("skipped: parity and time, which need a GPU: ")
    assert [line.partition(":")[0] for line in err.splitlines() if " s {" in line] == [*FORMS, *FORMS]
    assert "failed" not in err


def test_forms_are_timed_in_turn() -> None:
    called: list[str] = []
    times_ms = _time({name: lambda name=name: called.append(name) for name in "ab"}, 3, warmup=1)  # type: ignore[misc]
    assert [set(called[index : index + 2]) for index in (0, 2, 4, 6)] == [{"a", "b"}] * 4
    assert all(np.shape(values) == (3,) and (values >= 0).all() for values in times_ms.values())
