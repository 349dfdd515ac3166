"""One door to both Python modules, for building and for running: `tensorrt` (10.3 of JetPack 6 to 11) and TensorRT for RTX.

They share the names that are used here. Where they differ is a property of `TensorRt`, never a test of the name
elsewhere.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from rfedge.bundle.engines import EngineTarget
from rfedge.errors import BackendUnavailableError, ConfigError, one_of
from rfedge.nvidia.device import CudaDevice, read_cuda_device

TARGETS: Final = ("tensorrt", "tensorrt-rtx")
_MIN_VERSION: Final = (10, 3)
# The wheel that holds the libraries of TensorRT for RTX. The bindings' own wheel comes without them.
_RTX_LIBRARIES: Final = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True)
class TensorRt:
    """A loaded TensorRT."""

    name: str
    trt: Any
    version: str

    @property
    def keeps_timing_cache(self) -> bool:
        """TensorRT for RTX chooses kernels without timing them; its cache calls do nothing and warn."""
        return self.name == "tensorrt"

    @property
    def compute_capabilities(self) -> dict[int, Any]:
        """SM -> the module's name for it, for every device this module can build for without having it."""
        names = getattr(self.trt, "ComputeCapability", None)
        if names is None or self.name == "tensorrt":
            return {}
        found = {re.fullmatch(r"SM(\d+)", name): value for name, value in names.__members__.items()}
        return {int(match.group(1)): value for match, value in found.items() if match is not None}

    def device_target(self, device: CudaDevice | None = None) -> EngineTarget:
        """Return the target that is a GPU, this machine's by default; BackendUnavailableError where there is none."""
        device = device or read_cuda_device()
        return EngineTarget(module=self.name, version=self.version, sm=device.sm, cuda=device.cuda, driver=device.driver)

    def ahead_of_time_target(self, sm: int) -> EngineTarget:
        """Return the target SM `sm`, compiled without the device; ConfigError where this module cannot build for it."""
        if sm not in self.compute_capabilities:
            able = ", ".join(f"sm{number}" for number in sorted(self.compute_capabilities))
            raise ConfigError(
                "ahead-of-time target",
                got=f"sm{sm}",
                expected=f"one of {able} ({self.name} {self.version})" if able else f"no --aot with {self.name}",
                remedy="Build on the device itself, without --aot."
                if able
                else "Pass --target tensorrt-rtx, or build on the device itself.",
            )
        return EngineTarget(module=self.name, version=self.version, sm=sm, ahead_of_time=True)


def parse_compute_capabilities(text: str) -> tuple[int, ...]:
    """Read "sm86,sm89" as (86, 89); ConfigError where a part is not of this form, or given twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [re.fullmatch(r"(?i)sm_?(\d{2,3})", part) for part in parts]
    found = tuple(int(match.group(1)) for match in numbers if match is not None)
    if not parts or len(found) != len(parts) or len(set(found)) != len(found):
        raise ConfigError(
            "--aot", got=repr(text), expected="compute capabilities such as sm86,sm89", remedy="Name each once."
        )
    return found


def load_tensorrt(name: str) -> TensorRt:
    """Import the TensorRT called `name`, one of `TARGETS`; BackendUnavailableError where it is not here or too old."""
    one_of(TARGETS, name, "--target")
    try:
        module = importlib.import_module("tensorrt") if name == "tensorrt" else import_rtx()
    except (ImportError, OSError) as error:  # missing module; missing or foreign shared library
        raise BackendUnavailableError(
            f"target {name}",
            got=" ".join(str(error).split()),
            expected="an installed library",
            remedy="On Jetson it comes with JetPack (make the virtual environment with --system-site-packages); "
            "elsewhere see docs/how-to/build_engines.md."
            if name == "tensorrt"
            else "Install it on x86 Linux: pip install 'rfedge[tensorrt-rtx]'.",
        ) from None
    version = str(module.__version__)
    if name == "tensorrt" and tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _MIN_VERSION:
        raise BackendUnavailableError(
            "tensorrt", got=f"version {version}", expected="10.3 or newer", remedy="Update JetPack to 6.1 or newer."
        )
    return TensorRt(name=name, trt=module, version=version)


def import_rtx() -> ModuleType:
    """Import TensorRT for RTX, whose libraries lie in another wheel than its bindings; raises ImportError or OSError."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # the wheel of NVIDIA's own archive, complete
        return importlib.import_module("tensorrt_rtx")
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0])
        # The bindings ask the loader for these by name; loading them first, for everybody, is the answer.
        for pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
            for library in sorted(folder.glob(pattern)):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")
