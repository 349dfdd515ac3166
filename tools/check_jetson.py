"""Prove that the core dependencies resolve to binary wheels on a Jetson, without installing anything.

JetPack 6 has Python 3.10 on glibc 2.35, JetPack 7 has Python 3.12 on glibc 2.39, both on aarch64. pip resolves the
`dependencies` of pyproject.toml for each of them with source builds forbidden, and the wheels found are listed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {"JetPack 6": ("3.10", 35), "JetPack 7": ("3.12", 39)}
_OLDEST_GLIBC_MINOR = 17


def core_dependencies(pyproject: Path) -> list[str]:
    if sys.version_info >= (3, 11):
        import tomllib

        return list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])
    from pip._vendor import tomli

    return list(tomli.loads(pyproject.read_text())["project"]["dependencies"])


def resolve(requirements: list[str], python_version: str, glibc_minor: int) -> list[tuple[str, str, str]]:
    """Return (name, version, wheel file) for everything pip would install; raises CalledProcessError when it cannot."""
    platforms = [
        "manylinux2014_aarch64",
        *(f"manylinux_2_{minor}_aarch64" for minor in range(_OLDEST_GLIBC_MINOR, glibc_minor + 1)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = "-m pip install --quiet --dry-run --ignore-installed --only-binary=:all:"
        command = [sys.executable, *options.split()]
        command += ["--target", f"{folder}/target", "--implementation", "cp", "--python-version", python_version]
        command += ["--report", str(report), *(f"--platform={platform}" for platform in platforms), *requirements]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        found = json.loads(report.read_text())["install"]
    return sorted(
        (item["metadata"]["name"], item["metadata"]["version"], item["download_info"]["url"].rsplit("/", 1)[-1])
        for item in found
    )


def main() -> int:
    requirements = core_dependencies(Path(__file__).parent.parent / "pyproject.toml")
    for name, (python_version, glibc_minor) in TARGETS.items():
        try:
            wheels = resolve(requirements, python_version, glibc_minor)
        except subprocess.CalledProcessError as error:
            print(f"{name} (Python {python_version}, aarch64): does not resolve to wheels\n{error.stderr}", file=sys.stderr)
            return 1
        print(f"{name} (Python {python_version}, aarch64): {len(wheels)} wheels")
        for package, package_version, file in wheels:
            print(f"  {package:<20} {package_version:<12} {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
