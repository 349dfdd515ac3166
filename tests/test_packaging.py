"""The three linked folders, the import arrows, and what ends up in a wheel."""

import ast
import collections
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("export", "runtimes", "benchmarks")

# folder -> import prefixes it must not use, at any depth (design: data flows model -> export -> runtimes -> benchmarks)
FORBIDDEN = {
    "rfedge/model": ("rfedge.export", "rfedge.runtimes", "rfedge.benchmarks", "rfedge.envs", "rfedge.data", "rfedge.train"),
    "rfedge/data": (
        "rfedge.envs",
        "rfedge.model",
        "rfedge.train",
        "rfedge.export",
        "rfedge.runtimes",
        "rfedge.benchmarks",
        "torch",
    ),
    "rfedge/train": ("rfedge.export", "rfedge.runtimes", "rfedge.benchmarks", "rfedge.envs"),
    **dict.fromkeys(
        (f"rfedge/{name}" for name in ("io", "bundle", "language", "nvidia", "jobs", "robot", "machine", "records")),
        (
            *("rfedge.model", "rfedge.data", "rfedge.train", "rfedge.envs", "rfedge.cli"),
            *("rfedge.export", "rfedge.runtimes", "rfedge.benchmarks"),
        ),
    ),
    "rfedge/envs": ("torch", "rfedge.model", "rfedge.train", "rfedge.export", "rfedge.runtimes", "rfedge.benchmarks"),
    "export": ("rfedge.envs", "rfedge.runtimes", "rfedge.benchmarks", "rfedge.train"),
    "runtimes": ("rfedge.export", "rfedge.benchmarks", "rfedge.train"),
}
# the one runner that is PyTorch; it imports it inside its methods
TORCH_RUNNER = "runtimes/backends/reference.py"


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]


@pytest.mark.parametrize("name", LINKED)
def test_each_link_resolves_to_its_folder(name: str) -> None:
    link = ROOT / "rfedge" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name in imports(path):
            assert not name.startswith(FORBIDDEN[folder]), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_torch_runner_of_the_runtimes_knows_torch() -> None:
    for path in sources("runtimes"):
        uses = {name for name in imports(path) if name.split(".")[0] == "torch" or name.startswith("rfedge.model")}
        assert not uses or path == ROOT / TORCH_RUNNER, f"{path.relative_to(ROOT)} imports {uses}"


def test_the_core_knows_no_folder_above_it() -> None:
    for path in sorted((ROOT / "rfedge").glob("*.py")):
        if path.name == "__main__.py":  # `python -m rfedge`: the command line's other door
            continue
        for name in imports(path):
            assert not name.startswith(
                ("torch", "rfedge.model", "rfedge.data", "rfedge.train", "rfedge.envs", "rfedge.cli")
            ), path
            assert not name.startswith(tuple(f"rfedge.{linked}" for linked in LINKED)), path


def test_a_folder_explains_itself() -> None:
    """A newcomer finds a line by its folder: few files in each, none of them long, nearly nothing at the root."""
    files = [path for folder in ("rfedge", *LINKED) for path in sources(folder)]
    assert len(list((ROOT / "rfedge").glob("*.py"))) <= 8
    per_folder = collections.Counter(path.parent for path in files)
    assert max(per_folder.values()) <= 20, per_folder.most_common(3)
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    assert max(lengths.values()) <= 450, max(lengths, key=lengths.__getitem__)


HEAVY = ("torch", "tensorrt", "tensorrt_rtx_bindings", "mujoco", "onnx", "transformers")


@pytest.mark.parametrize(
    "module",
    ["rfedge", "rfedge.runtimes", "rfedge.runtimes.policy.edge_policy", "rfedge.data", "rfedge.envs", "rfedge.cli.app"],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, unpack it, and build the wheel from that, as an installer without a wheel would."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    subprocess.run([*build, "--sdist", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, Debian 12's, has none
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([*build, "--wheel", "--outdir", str(folder), str(unpacked)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_built_from_the_sdist_holds_every_source_and_only_rfedge(distributions: tuple[Path, Path]) -> None:
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        (Path("rfedge") / path.relative_to(ROOT)).as_posix() if folder in LINKED else path.relative_to(ROOT).as_posix()
        for folder in ("rfedge", *LINKED)
        for path in sources(folder)
    }
    assert expected <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rfedge"}
