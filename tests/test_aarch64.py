"""The core wheel on a 64-bit ARM, by qemu: what a Jetson's CPU does with a shipped bundle is run here, not assumed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QEMU = shutil.which("qemu-aarch64-static")
DEBOOTSTRAP = shutil.which("debootstrap")
PACKAGES = "python3.11-minimal,libpython3.11-stdlib,libstdc++6,libffi8,libexpat1,libsqlite3-0,libssl3"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# The cores of an Orin; onnxruntime reads them here, and what qemu shows of the host's crashes it.
CORE = "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
CORE += "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(QEMU is None or DEBOOTSTRAP is None, reason="needs Debian's qemu-user-static and debootstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root"),
]
Arm = Callable[..., subprocess.CompletedProcess[str]]


def _run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=1500, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    """Return what runs `python -m MODULE ...` on an ARM with the core wheel installed.

    RFEDGE_AARCH64_ROOT keeps Debian's packages for the next time, RFEDGE_AARCH64_RECORD the record of the replay.
    """
    folder = tmp_path_factory.mktemp("aarch64")
    root = Path(os.environ.get("RFEDGE_AARCH64_ROOT", folder / "root"))
    if not (root / "usr/bin/python3.11").exists():
        done = _run(DEBOOTSTRAP, "--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root)
        if done.returncode:
            pytest.skip(f"Debian's arm64 packages cannot be had: {done.stdout.splitlines()[-1:]}")
        for package in (root / "var/cache/apt/archives").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(f"processor\t: {core}\n{CORE}" for core in range(2)))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = _run(*pip, "wheel", "-q", "--no-deps", "-w", folder / "dist", ROOT)
    assert wheel.returncode == 0, wheel.stderr
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ("--target", folder / "site", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11")
    site = _run(*pip, "install", "-q", *target, *platforms, *(folder / "dist").glob("*.whl"))
    assert site.returncode == 0, site.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        python = (QEMU, "-cpu", "cortex-a76", "-L", root, root / "usr/bin/python3.11")
        return _run(*python, "-m", *arguments, PYTHONPATH=str(folder / "site"), OMP_NUM_THREADS="2")

    return run


def test_doctor_names_what_an_arm_can_do(arm: Arm) -> None:
    done = arm("rfedge.cli.app", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert '"aarch64"' in done.stdout
    assert "dotprod" in done.stdout


def test_the_shipped_bundle_verifies_on_an_arm(arm: Arm) -> None:
    done = arm("rfedge.cli.app", "verify", "playtable-jump-step", "--json")
    assert done.returncode == 0, done.stderr


def test_an_arm_acts_as_x86_did(arm: Arm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "run.jsonl"
    run = ("run", "playtable-jump-step", "--task", "turn_on_led", "--seed", "1", "--episodes", "1")
    made = _run(sys.executable, "-m", "rfedge.cli.app", *run, "--record", record, "--record-frames", "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads((Path(json.loads(made.stdout)["bundle"]) / "manifest.json").read_text())
    allowed = manifest["parity"]["metrics"]["action_max_error"]  # of int8 against fp32, in its proof
    replay = ("replay", record, "playtable-jump-step", "--from-frames", "--tolerance", allowed, "--json")
    done = arm("rfedge.cli.app", *replay)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["num_steps"] == json.loads(made.stdout)["episodes"][0]["num_steps"]
    if keep := os.environ.get("RFEDGE_AARCH64_RECORD"):
        report |= {"record": "turn_on_led, seed 1", "bundle": "playtable-jump-step"}
        Path(keep).write_text(json.dumps(report, indent=2) + "\n")
    off = f"at most {report['largest_difference']:.2g} off x86, {allowed:.2g} allowed"
    with capsys.disabled():
        print(f"\n{report['num_steps']} steps: aarch64 is {off}")
