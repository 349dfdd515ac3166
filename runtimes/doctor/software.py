"""Python, onnxruntime's providers, TensorRT and the extras of rfedge: what is listed, and what really starts."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from rfedge.bundle.int8_kernels import int8_saturates
from rfedge.errors import first_line
from rfedge.machine.probing import Absent, Probed, command_output, probe

RTX_MODULE: Final = "tensorrt_rtx_bindings"
# TensorRT for RTX has its libraries in another wheel than its bindings, which find them once they are loaded.
_LOAD_RTX_LIBRARIES: Final = """
import ctypes, importlib.util, pathlib
spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
for folder in (spec.submodule_search_locations or []) if spec else []:
    for pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
        for library in sorted(pathlib.Path(folder).glob(pattern)):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
"""
_OLDEST_PYTHON: Final = (3, 10)
# Import names that differ from the names packages are installed under.
_IMPORT_NAMES: Final = {"nvidia-ml-py": "pynvml", "onnxruntime-gpu": "onnxruntime", "pillow": "PIL", "pyyaml": "yaml"}


@dataclass(frozen=True, slots=True)
class Python:
    version: str
    executable: str
    supported: bool


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    version: str
    providers: dict[str, str | None]  # name -> None when a session on it ran, else why none did
    int8_saturates: bool = False  # its fast uint8 x int8 kernels saturate on this CPU

    def runs(self, provider: str) -> bool:
        """Whether a session on this provider ran here."""
        return provider in self.providers and self.providers[provider] is None


@dataclass(frozen=True, slots=True)
class TensorRt:
    """One TensorRT module that imports, libraries included."""

    module: str
    version: str


@dataclass(frozen=True, slots=True)
class Extra:
    """One optional extra: the packages it asks for that are here, and those that are not."""

    name: str
    installed: dict[str, str]
    missing: tuple[str, ...]


def probe_python() -> Python:
    return Python(platform.python_version(), sys.executable, sys.version_info[:2] >= _OLDEST_PYTHON)


def probe_onnxruntime() -> OnnxRuntime:
    """List onnxruntime's providers and try each one."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Absent(f"onnxruntime does not import: {error}") from None
    providers: dict[str, str | None] = {}
    for name in onnxruntime.get_available_providers():
        # A broken CUDA or TensorRT library may end the process, so all but the CPU's are tried in one of their own.
        trial = probe(lambda name=name: try_provider(name) if name == "CPUExecutionProvider" else _try_apart(name))  # type: ignore[misc]
        providers[name] = trial.value if trial.value is not None else (trial.reason or None)
    works = providers.get("CPUExecutionProvider", "absent") is None
    return OnnxRuntime(onnxruntime.__version__, providers, works and int8_saturates())


def try_provider(name: str) -> None:
    """Run one small MatMul on an execution provider; raises Absent where it did not run there."""
    import numpy as np
    import onnxruntime

    from rfedge.runtimes.backends.matmul_model import matmul_model

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its own words on a provider that does not load go to stderr; ours say enough
    if name != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(matmul_model("fp32", 4, 16, 8), options, providers=[name], enable_fallback=0)
        session.run(None, {"x": np.zeros((4, 16), np.float32)})
    except Exception as error:
        said = first_line(error)
        raise Absent("it takes no MatMul, the CPU would run it" if "fallback to CPU EP" in said else said[:200]) from None
    if session.get_providers()[0] != name:
        raise Absent("its libraries do not load")


def _try_apart(name: str) -> None:
    code = (
        "from rfedge.runtimes.doctor.software import try_provider\n"
        "from rfedge.machine.probing import Absent\n"
        "try:\n"
        f"    try_provider({name!r})\n"
        "except Absent as absent:\n"
        "    print(absent)\n"
    )
    said = command_output([sys.executable, "-c", code], timeout_s=120.0).strip()
    if said:
        raise Absent(said.splitlines()[-1])


def probe_tensorrt(module: str) -> TensorRt:
    """Import "tensorrt" or `RTX_MODULE` in a process of its own, which a library that does not load may end."""
    if importlib.util.find_spec(module) is None:
        raise Absent(f"no module {module}")
    code = (
        f"{_LOAD_RTX_LIBRARIES if module == RTX_MODULE else ''}"
        "try:\n"
        f"    import {module} as module\n"
        "    print('version', module.__version__)\n"
        "except (ImportError, OSError) as error:\n"
        "    print(error)\n"
    )
    said = (command_output([sys.executable, "-c", code], timeout_s=60.0).strip().splitlines() or ["says nothing"])[-1]
    word, _, version = said.partition(" ")
    if word != "version":
        raise Absent(f"{module} does not import: {said}")
    return TensorRt(module, version)


def parse_requirements(requirements: list[str]) -> dict[str, list[str]]:
    """Return extra -> package names from a distribution's requirements, such as "torch>=2.9; extra == 'train'"."""
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
        if extra is not None and package is not None:
            extras.setdefault(extra.group(1), []).append(package.group(0))
    return extras


def probe_extras() -> tuple[Extra, ...]:
    """Tell of each extra which of its packages are installed."""
    try:
        requirements = metadata.requires("rfedge") or []
    except metadata.PackageNotFoundError:
        raise Absent("rfedge is not installed (it runs from its source folder)") from None
    extras = []
    for name, packages in parse_requirements(requirements).items():
        found = {package: probe(lambda package=package: _version(package)) for package in packages}  # type: ignore[misc]
        extras.append(
            Extra(
                name,
                {package: version.value for package, version in found.items() if version.value is not None},
                tuple(package for package, version in found.items() if version.value is None),
            )
        )
    return tuple(extras)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    # JetPack's own packages are modules without a distribution of that name.
    module = _IMPORT_NAMES.get(package, package.replace("-", "_"))
    if package == "onnxruntime-gpu" or importlib.util.find_spec(module) is None:
        raise Absent("not installed")
    return "installed"


def probe_bitsandbytes() -> str:
    """Multiply by weights of both its formats, in a process of its own, and return the version."""
    missing = [name for name in ("torch", "bitsandbytes") if not _has_module(name)]
    if missing:
        raise Absent(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")
    code = "from rfedge.runtimes.backends.reference import try_bitsandbytes\ntry_bitsandbytes()"
    command_output([sys.executable, "-c", code], timeout_s=120.0)
    return metadata.version("bitsandbytes")


def _has_module(name: str) -> bool:
    found: Probed[bool] = probe(lambda: importlib.util.find_spec(name) is not None)
    return bool(found.value)
