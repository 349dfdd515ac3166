"""Python, onnxruntime's providers, TensorRT and the extras of rfedge: what is listed, and what really starts."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Final

from rfedge.bundle.int8_kernels import int8_saturates
from rfedge.errors import first_line
from rfedge.machine.probing import Absent, command_output, probe
from rfedge.nvidia.tensorrt import import_rtx

RTX_MODULE: Final = "tensorrt_rtx_bindings"
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
        on_cpu = name == "CPUExecutionProvider"
        trial = probe(partial(try_provider, name) if on_cpu else partial(_apart, f"try_provider({name!r})"))
        providers[name] = trial.reason or None
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


def _apart(call: str, module: str = __name__) -> str:
    """Evaluate a call of `module` in a process of its own, which a broken library may end; return the text of its result."""
    code = (
        "import importlib\n"
        "try:\n"
        f"    print('found', importlib.import_module({module!r}).{call})\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    said = (command_output([sys.executable, "-c", code], timeout_s=120.0).strip().splitlines() or ["says nothing"])[-1]
    if not said.startswith("found "):
        raise Absent(said)
    return said.removeprefix("found ")


def probe_tensorrt(module: str) -> TensorRt:
    """Import "tensorrt" or `RTX_MODULE`, libraries included."""
    if importlib.util.find_spec(module) is None:
        raise Absent(f"no module {module}")
    try:
        return TensorRt(module, _apart(f"imported_version({module!r})"))
    except Absent as absent:
        raise Absent(f"{module} does not import: {absent}") from None


def imported_version(module: str) -> str:
    found = import_rtx() if module == RTX_MODULE else importlib.import_module(module)
    return str(found.__version__)


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
        found = {package: probe(partial(_version, package)).value for package in packages}
        installed = {package: version for package, version in found.items() if version is not None}
        extras.append(Extra(name, installed, tuple(package for package in found if package not in installed)))
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
    missing = [name for name in ("torch", "bitsandbytes") if importlib.util.find_spec(name) is None]
    if missing:
        raise Absent(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")
    _apart("try_bitsandbytes()", "rfedge.runtimes.backends.reference")
    return metadata.version("bitsandbytes")
