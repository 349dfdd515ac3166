"""The doctor on recorded texts, on made-up file systems and machines, and on this machine."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from rfedge.config import PRECISIONS
from rfedge.machine.gpu import Gpu, parse_smi
from rfedge.machine.jetson import (
    Clock,
    Jetson,
    PowerMode,
    jetpack_of,
    parse_clocks,
    parse_cuda_version,
    parse_power_mode,
    parse_tegra_release,
    probe_jetson,
)
from rfedge.machine.memory import Memory, Swap, memory_limit, parse_meminfo, parse_swaps, probe_memory
from rfedge.machine.probing import Absent, Probed, command_output, probe
from rfedge.machine.processor import Processor, cpu_quota, int8_support, parse_cpuinfo, probe_processor
from rfedge.runtimes.doctor.examination import PRECISION_NAMES, Examination, PrecisionVerdict, check_precisions, examine
from rfedge.runtimes.doctor.software import (
    OnnxRuntime,
    Python,
    TensorRt,
    parse_requirements,
    probe_onnxruntime,
    probe_tensorrt,
    try_provider,
)
from tests.runtimes.doctor import recorded

CPU_RUNTIME = OnnxRuntime("1.31.1", {"CPUExecutionProvider": None})
CUDA_RUNTIME = OnnxRuntime("1.31.1", {"CUDAExecutionProvider": None, "CPUExecutionProvider": None})
ORIN = Gpu("Orin", 87, 64 * 10**9, "540.4.0", "12.6", "the CUDA driver")
JETSON = Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2", Probed("12.6.11"), Probed(PowerMode("30W", 2)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def processor(cpuinfo: str = recorded.XEON, **changes: object) -> Processor:
    model, features = parse_cpuinfo(cpuinfo)
    base = Processor(model, "x86_64", 64, 64, None, features, int8_support(features))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def verdicts_on(**parts: object) -> dict[str, PrecisionVerdict]:
    found = {
        "processor": Probed(processor()),
        "gpu": Probed(None),
        "onnxruntime": Probed(CPU_RUNTIME),
        "tensorrt": Probed(None),
        "bitsandbytes": Probed(None, "bitsandbytes is not installed"),
    }
    found |= {name: Probed(part) for name, part in parts.items()}
    return {verdict.name: verdict for verdict in check_precisions(found)}


def test_releases_become_jetpacks() -> None:
    assert parse_tegra_release(recorded.ORIN_NANO_RELEASE) == "36.4.3"
    assert parse_tegra_release(recorded.THOR_RELEASE) == "38.2.2"
    assert parse_tegra_release("Ubuntu 22.04") is None
    assert [jetpack_of(l4t) for l4t in ("36.4.3", "36.3", "36.9.9", "38.2.2", "99.0")] == [
        *("6.2", "6.0", "6.x", "7.0 or 7.1", "unknown")
    ]


def test_power_modes_and_clocks() -> None:
    assert parse_power_mode(recorded.NVPMODEL_30W) == PowerMode("30W", 2)
    assert parse_power_mode(recorded.NVPMODEL_MAXN_SUPER) == PowerMode("MAXN_SUPER", 2)
    with pytest.raises(Absent, match="names no mode"):
        parse_power_mode("nvpmodel: command failed")
    floating = parse_clocks(recorded.CLOCKS_FLOATING)
    assert floating["gpu"] == Clock(306, 918, 306)
    assert floating["emc"] == Clock(204, 3199, 2133)
    assert floating["cpu"].max_mhz == 1344, "cores that are off do not count"
    assert set(floating) == {"cpu", "gpu", "emc"}
    assert not any(clock.locked for clock in floating.values())
    locked = parse_clocks(recorded.CLOCKS_LOCKED)
    assert locked["cpu"].locked
    assert locked["gpu"].locked
    assert parse_clocks("Error: Run this script as a root user") == {}


def test_a_jetson_is_read_from_its_files_without_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    root = write(
        tmp_path,
        {
            "etc/nv_tegra_release": recorded.ORIN_NANO_RELEASE,
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "usr/local/cuda/version.json": recorded.CUDA_VERSION,
            "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
            "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
            "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
        },
    )
    board = probe_jetson(root)
    assert board.model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (board.l4t, board.jetpack, board.cuda.value) == ("36.4.3", "6.2", "12.6.11")
    assert board.power_mode == Probed(None, "no nvpmodel command")
    assert board.clocks == {"gpu": Clock(306, 624.75, 306)}
    with pytest.raises(Absent, match="not a Jetson"):
        probe_jetson(tmp_path / "elsewhere")
    with pytest.raises(Absent, match="no CUDA toolkit"):
        parse_cuda_version("not json")


def test_int8_instructions() -> None:
    expected = {
        recorded.XEON: ("fast", "AMX-INT8"),
        recorded.HASWELL: ("slow", "AVX2"),
        recorded.CORTEX_A78: ("fast", "dotprod"),
        recorded.CORTEX_A57: ("slow", "NEON"),
        "": ("slow", "none"),
    }
    for text, (speed, instructions) in expected.items():
        support = int8_support(parse_cpuinfo(text)[1])
        assert (support.speed, support.instructions) == (speed, instructions)
    assert parse_cpuinfo(recorded.XEON)[0].startswith("Intel(R) Xeon"), "the first core's name"
    assert "FP16" in parse_cpuinfo(recorded.CORTEX_A78)[1]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/1f\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
    ids=["v2", "v2 parent", "v2 max", "v1 container", "v1 unlimited", "none"],
)
def test_a_container_may_use_fewer_cores_than_it_sees(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    assert cpu_quota(write(tmp_path, files)) == cores
    assert processor(quota_cores=cores).usable_cores == (64 if cores is None else round(cores))


def test_a_quota_is_said_with_the_flag_that_helps() -> None:
    lines = examined(processor=Probed(processor(quota_cores=2.0))).lines
    (cores,) = [line for line in lines if line.subject == "  cores"]
    assert cores.verdict == "note"
    assert cores.text.startswith("2 of 64 cores are ours: a control group grants 2 cores")
    assert cores.text.endswith("pass --threads 2")


def test_memory_swap_and_limits(tmp_path: Path) -> None:
    assert parse_meminfo(recorded.MEMINFO)["MemAvailable"] == 2817400 * 1024
    assert parse_swaps(recorded.SWAPS) == (
        Swap("/dev/zram0", 650244 * 1024, 1024 * 1024, compressed=True),
        Swap("/swapfile", 8388604 * 1024, 0, compressed=False),
    )
    root = write(
        tmp_path,
        {
            "proc/meminfo": recorded.MEMINFO,
            "proc/swaps": recorded.SWAPS,
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": "2000000000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert memory_limit(root) == 2_000_000_000
    found = probe_memory(root)
    assert found.usable_bytes == 2_000_000_000
    assert len(found.swaps) == 2
    unlimited = write(
        tmp_path / "v1",
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
    )
    assert memory_limit(unlimited) is None
    with pytest.raises(Absent, match="not a Linux system"):
        probe_memory(tmp_path / "nothing")


def test_gpus_from_nvidia_smi() -> None:
    h100 = parse_smi(recorded.SMI)
    assert (h100.name, h100.sm, h100.memory_bytes, h100.driver) == ("NVIDIA H100 80GB HBM3", 90, 81559 * 2**20, "560.35.03")
    assert h100.tensor_formats == ("fp16", "int8", "bf16", "fp8")
    orin = parse_smi(recorded.SMI_JETSON)
    assert (orin.sm, orin.memory_bytes) == (87, 0)
    assert "fp8" not in orin.tensor_formats
    with pytest.raises(Absent, match="lists no GPU"):
        parse_smi("No devices were found")


def test_a_probe_never_raises() -> None:
    def broken() -> str:
        raise ValueError("first line\nsecond line")

    assert probe(broken) == Probed(None, "ValueError: first line")
    assert probe(lambda: command_output(["rfedge-no-such-command"])) == Probed(None, "no rfedge-no-such-command command")
    failing = probe(lambda: command_output([sys.executable, "-c", "import sys; sys.exit('it is broken')"]))
    assert failing.value is None
    assert failing.reason.endswith("failed: it is broken")
    endless = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert "TimeoutExpired" in probe(lambda: command_output(endless, timeout_s=0.2)).reason
    assert probe(lambda: probe_processor(Path("/nowhere"))).value is not None


def test_providers_are_tried_and_not_only_listed() -> None:
    found = probe_onnxruntime()
    assert found.runs("CPUExecutionProvider")
    assert not found.runs("NoSuchExecutionProvider")
    with pytest.raises(Absent):
        try_provider("CUDAExecutionProvider" if not found.runs("CUDAExecutionProvider") else "NoSuchExecutionProvider")


def test_a_module_that_does_not_import_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "brokenrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    (tmp_path / "soundrt.py").write_text("__version__ = '10.3.0'\n")
    assert probe_tensorrt("soundrt") == TensorRt("soundrt", "10.3.0")
    with pytest.raises(Absent, match=r"brokenrt does not import: libnvinfer\.so\.10: cannot open"):
        probe_tensorrt("brokenrt")
    with pytest.raises(Absent, match="no module absentrt"):
        probe_tensorrt("absentrt")


def test_extras_come_from_the_distribution() -> None:
    requirements = [
        "numpy>=1.26",
        "torch>=2.9; extra == 'train'",
        'nvidia-ml-py>=12 ; extra == "gpu"',
        "onnx; extra == 'train'",
    ]
    assert parse_requirements(requirements) == {"train": ["torch", "onnx"], "gpu": ["nvidia-ml-py"]}


def test_every_precision_is_judged_on_a_plain_cpu() -> None:
    verdicts = verdicts_on()
    assert tuple(verdicts) == PRECISION_NAMES
    assert {name for name, verdict in verdicts.items() if not verdict.possible} == {"bf16", "nf4", "llm-int8"}
    assert verdicts["int8"].speed == "fast (AMX-INT8)"
    assert "cast to fp32" in verdicts["fp16"].speed
    assert verdicts["bf16"].reason == "onnxruntime has no bf16 MatMuls on the CPU; no NVIDIA GPU"
    assert verdicts["nf4"].reason == "bitsandbytes is not installed"
    able = verdicts_on(bitsandbytes="0.50.2")
    assert able["nf4"].possible
    assert able["llm-int8"].backend == "PyTorch on the CPU with bitsandbytes 0.50.2"
    assert all(verdict.possible or verdict.reason for verdict in verdicts.values())


def test_speed_is_judged_by_the_instructions_of_the_cpu() -> None:
    assert verdicts_on(processor=processor(recorded.CORTEX_A78))["fp16"].speed.startswith("fast")
    old = verdicts_on(processor=processor(recorded.HASWELL))
    assert old["int8"].possible
    assert "AVX2 without VNNI" in old["int8"].speed


def test_gpus_are_judged_by_what_can_use_them() -> None:
    unusable = verdicts_on(gpu=ORIN)
    assert unusable["fp32"].backend == "onnxruntime CPU"
    assert unusable["bf16"].reason.endswith("this onnxruntime cannot use the Orin")
    cuda = verdicts_on(gpu=ORIN, onnxruntime=CUDA_RUNTIME)
    assert cuda["bf16"].backend == "onnxruntime CUDA on Orin"
    assert cuda["int8"].backend == "onnxruntime CPU"
    turing = Gpu("T4", 75, 16 * 10**9, "560", "12.6", "NVML")
    assert verdicts_on(gpu=turing, onnxruntime=CUDA_RUNTIME)["bf16"].reason.endswith("bf16 needs SM80+; T4 is SM75")
    fast = verdicts_on(gpu=ORIN, tensorrt=TensorRt("tensorrt", "10.3.0"))
    assert (fast["int8"].backend, fast["int8"].speed) == ("TensorRT 10.3.0 on Orin", "fast")
    assert verdicts_on(onnxruntime=None)["fp32"].reason == "onnxruntime is not usable here"


def examined(**changes: object) -> Examination:
    found: dict[str, object] = dict.fromkeys(("gpu", "jetson", "tensorrt", "tensorrt_rtx"), Probed(None, "not looked for"))
    found |= {
        "python": Probed(Python("3.12.3", "python3", supported=True)),
        "onnxruntime": Probed(CPU_RUNTIME),
        "processor": Probed(processor()),
        "memory": Probed(Memory(16 * 10**9, 9 * 10**9, None, (), 10**11)),
        "extras": Probed(()),
    }
    return Examination(found | changes, ())  # type: ignore[arg-type]


def test_only_what_stops_rfedge_is_a_problem() -> None:
    assert examined().healthy
    assert not examined(onnxruntime=Probed(None, "onnxruntime does not import: no module")).healthy
    broken = OnnxRuntime("1.31.1", {"CPUExecutionProvider": "illegal instruction"})
    assert not examined(onnxruntime=Probed(broken)).healthy
    assert not examined(python=Probed(Python("3.9.1", "python3", supported=False))).healthy
    tight = examined(memory=Probed(Memory(8 * 10**9, 10**9, None, parse_swaps(recorded.SWAPS), 10**9)))
    assert tight.healthy
    assert [line.verdict for line in tight.lines if line.subject in ("memory", "  swap", "  disk")] == ["note"] * 4


def test_a_board_in_a_low_mode_with_floating_clocks_is_told_what_to_do() -> None:
    board = dataclasses.replace(JETSON, clocks=parse_clocks(recorded.CLOCKS_FLOATING))
    texts = {line.subject: line for line in examined(jetson=Probed(board), gpu=Probed(ORIN)).lines}
    assert texts["  JetPack"].text == "6.2 (L4T R36.4.3)"
    assert texts["  power mode"].verdict == texts["  gpu clock"].verdict == "note"
    assert "clocks are capped" in texts["  power mode"].text
    assert "sudo jetson_clocks" in texts["  gpu clock"].text
    assert texts["  tensor cores"].text == "fp16, int8, bf16; no fp8 (needs SM89+)"


def test_this_machine_is_examined_without_torch_and_is_healthy() -> None:
    seen: list[tuple[str, int, int]] = []
    examination = examine(lambda *step: seen.append(step))
    document = json.loads(json.dumps(examination.document()))
    assert document["healthy"] is True
    assert document["format"] == "rfedge-doctor"
    assert [verdict["name"] for verdict in document["precisions"]] == list(PRECISION_NAMES)
    assert {verdict["name"] for verdict in document["precisions"] if verdict["possible"]} <= set(PRECISIONS)
    assert document["facts"]["processor"]["value"]["features"] is not None
    assert seen[0] == ("examine", 0, seen[-1][2])
    assert seen[-1][1] == seen[-1][2]
