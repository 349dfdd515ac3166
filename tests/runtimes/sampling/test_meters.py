"""Readings of real tools to watts, joules and degrees, without the tools."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfedge.machine.power.energy import EnergyMeter, Reading, WrappingCounter
from rfedge.machine.power.jetson_meters import JtopSource, TegrastatsSource, board_power_w, choose_rails, parse_tegrastats
from rfedge.machine.power.sampler import KernelThermometers
from rfedge.machine.power.sources import NvmlSource, RaplSource, find_power_sources
from rfedge.machine.probing import Absent

# Lines that boards printed.
ORIN_NANO_JETPACK_6 = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU [1%@1420,2%@1420,0%@1420,2%@1420,"
    "2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4761mW/4778mW "
    "VDD_CPU_GPU_CV 515mW/501mW VDD_SOC 1428mW/1428mW"
)
AGX_ORIN_JETPACK_6 = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU [90%@2201,100%@2201] "
    "EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C "
    "SOC2@70C Tdiode@62.25C SOC0@69.531C CV1@-256C GPU@69.125C tj@77.281C SOC1@68.968C VDD_GPU_SOC 3150mW/2971mW "
    "VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW NC 0mW/0mW VDDQ_VDD2_1V8AO 1091mW/1091mW NC 0mW/0mW"
)
THOR_JETPACK_7_0 = (
    "01-20-2026 22:46:22 RAM 17842/125772MB (lfb 79x4MB) CPU [0%@972,0%@972] cpu@30.468C tj@31.218C soc012@30.218C "
    "soc345@31.218C VDD_GPU -392mW/0mW VDD_CPU_SOC_MSS 5535mW/5535mW VIN_SYS_5V0 5040mW/5040mW VIN 16802mW/16802mW"
)
THOR_JETPACK_7_2 = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972] cpu@60.406C "
    "tj@63.281C soc012@58.468C gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS "
    "18961mW/18961mW/18961mW VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
ORIN_NX_JETPACK_7_2 = (
    "10-01-2026 20:36:35 RAM 2432/15598MB (lfb 4x4MB) SWAP 0/6144MB (cached 0MB) CPU [55%@1036,off] GR3D_FREQ 0% "
    "cv0@56.281C/56.281C cpu@57.156C/57.156C tj@59.687C/59.687C VDD_IN 7280mW/7280mW/7280mW"
)
XAVIER_NX_JETPACK_4 = (
    "RAM 2673/7765MB (lfb 118x4MB) SWAP 0/3883MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [12%@1190,off] EMC_FREQ 7% "
    "GR3D_FREQ 33% AO@35C GPU@33C PMIC@100C VDD_IN 3902/3611 VDD_CPU_GPU_CV 1331/1180 VDD_SOC 997/941"
)


@pytest.mark.parametrize(
    ("line", "rails", "power_w", "zone"),
    [
        (ORIN_NANO_JETPACK_6, ("VDD_IN",), 4.761, ("tj", 50.25)),
        (AGX_ORIN_JETPACK_6, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 22.43, ("GPU", 69.125)),
        (THOR_JETPACK_7_0, ("VIN",), 16.802, ("tj", 31.218)),
        (THOR_JETPACK_7_2, ("VIN",), 87.426, ("gpu", 62.906)),
        (ORIN_NX_JETPACK_7_2, ("VDD_IN",), 7.28, ("cv0", 56.281)),
        (XAVIER_NX_JETPACK_4, ("VDD_IN",), 3.902, ("AO", 35.0)),
    ],
)
def test_tegrastats_lines(line: str, rails: tuple[str, ...], power_w: float, zone: tuple[str, float]) -> None:
    found = parse_tegrastats(line)
    assert not {"RAM", "SWAP", "IRAM", "APE", "CPU"} & set(found.rails_mw)
    chosen = choose_rails(found.rails_mw)
    assert chosen == rails
    assert board_power_w(found.rails_mw, chosen) == pytest.approx(power_w)
    assert found.temperatures_c[zone[0]] == zone[1]
    assert "CV1" not in found.temperatures_c, "a part without power reads -256"


def test_rails_below_zero_are_kept_and_unknown_boards_are_refused() -> None:
    assert parse_tegrastats(THOR_JETPACK_7_0).rails_mw["VDD_GPU"] == -392
    with pytest.raises(Absent, match="no power rail that is known among VDD_NEW"):
        choose_rails(["VDD_NEW"])
    with pytest.raises(Absent, match="no more readings of VDD_IN"):
        board_power_w({}, ("VDD_IN",))


def tegrastats_that(tmp_path: Path, body: str) -> list[str]:
    """A program of ours in the place of the board's."""
    script = tmp_path / "tegrastats.py"
    script.write_text(f"import sys, time\nassert sys.argv[1:] == ['--interval', '100']\n{body}\n")
    return [sys.executable, str(script)]


def test_tegrastats_runs_beside_us_and_ends_with_us(tmp_path: Path) -> None:
    command = tegrastats_that(tmp_path, f"while True: print({THOR_JETPACK_7_2!r}, flush=True); time.sleep(0.05)")
    source = TegrastatsSource(0.01, command)
    assert source.name == "board, VIN by tegrastats"
    assert source.read() == Reading(power_w=87.426)
    assert source.temperatures_c()["gpu (tegrastats)"] == 62.906
    source.close()
    assert source._process.returncode is not None
    assert not source._reader.is_alive()


def test_tegrastats_that_does_not_work_gives_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="no tegrastats-of-nobody command"):
        TegrastatsSource(0.1, ["tegrastats-of-nobody"])
    with pytest.raises(Absent, match="no power rail that is known among none"):
        TegrastatsSource(0.1, tegrastats_that(tmp_path, "sys.exit(1)"))
    source = TegrastatsSource(0.1, tegrastats_that(tmp_path, f"print({ORIN_NX_JETPACK_7_2!r})"))
    source._line_time_s -= 2  # nothing for two seconds
    with pytest.raises(Absent, match="fell silent"):
        source.read()
    source.close()


def write_rapl(root: Path, domains: dict[str, tuple[str, int, int]]) -> Path:
    for folder, (name, energy_uj, range_uj) in domains.items():
        path = root / "sys/class/powercap" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{energy_uj}\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root


def test_rapl_counts_packages_once_and_survives_a_wrap(tmp_path: Path) -> None:
    range_uj = 262_143_328_850
    write_rapl(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", range_uj - 1_000_000, range_uj),
            "intel-rapl:0:0": ("core", 5, range_uj),
            "intel-rapl:1": ("package-1", 7_000_000, range_uj),
            "intel-rapl:2": ("psys", 9, range_uj),
        },
    )
    source = RaplSource(tmp_path)
    assert source.name == "2 CPU packages by RAPL"
    assert source.read() == Reading(energy_j=0.0)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("1999999\n")  # past the end: 3 J further
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("7500000\n")
    assert source.read() == Reading(energy_j=3.5)


def test_rapl_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Absent, match="no RAPL counters"):
        RaplSource(tmp_path)
    write_rapl(tmp_path, {"intel-rapl:0": ("package-0", 1, 10)})
    original = Path.read_text

    def only_root_may(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":  # file modes do not stop the root user, who may run this test
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", only_root_may)
    with pytest.raises(Absent, match="only root reads /sys/class/powercap/intel-rapl:0/energy_uj"):
        RaplSource(tmp_path)


class FakeNvml:
    """The few calls of pynvml that are used, with its error class."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool = True, tells: bool = True) -> None:
        self.counts, self.tells, self.is_open = counts, tells, False

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, _: int) -> bytes:  # noqa: N802
        return b"NVIDIA RTX A2000"

    def nvmlDeviceGetTotalEnergyConsumption(self, _: int) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return 12_345

    def nvmlDeviceGetPowerUsage(self, _: int) -> int:  # noqa: N802
        if not self.tells:
            raise self.NVMLError("Not Supported")
        return 30_500

    def nvmlDeviceGetTemperature(self, _: int, kind: int) -> int:  # noqa: N802
        assert kind == self.NVML_TEMPERATURE_GPU
        return 61


def test_nvml_prefers_the_counter_and_falls_back_on_power() -> None:
    source = NvmlSource(FakeNvml())
    assert source.name == "GPU (NVIDIA RTX A2000) by NVML"
    assert source.read() == Reading(energy_j=12.345)
    assert source.temperatures_c() == {"GPU die (NVML)": 61.0}
    assert NvmlSource(FakeNvml(counts=False)).read() == Reading(power_w=30.5)
    silent = FakeNvml(counts=False, tells=False)
    with pytest.raises(Absent, match="NVML: Not Supported"):
        NvmlSource(silent)
    assert not silent.is_open


class FakeJtop:
    """What a client of jetson-stats shows of an Orin Nano: the input rail stands apart from the others."""

    temperature: dict[str, Any] = {"cpu": {"temp": 48.5, "online": True}, "cv0": {"temp": -256, "online": False}}  # noqa: RUF012
    power: dict[str, Any] = {  # noqa: RUF012
        "rail": {"VDD_CPU_GPU_CV": {"power": 515, "avg": 501}, "VDD_SOC": {"power": 1428, "avg": 1428}},
        "tot": {"power": 4761, "avg": 4778, "name": "VDD_IN"},
    }

    def __init__(self, interval: float) -> None:
        self.interval, self.is_open, self.waits = interval, False, 0

    def start(self) -> None:
        self.is_open = True

    def ok(self, spin: bool = False) -> bool:
        self.waits += not spin
        return self.is_open

    def close(self) -> None:
        self.is_open = False


def test_jtop_names_its_rail_and_its_end() -> None:
    source = JtopSource(0.5, FakeJtop)
    assert source.name == "board, VDD_IN by jtop"
    assert source._client.waits == 1
    assert source.read() == Reading(power_w=4.761)
    assert source.temperatures_c() == {"cpu (jtop)": 48.5}
    assert source._client.waits == 1, "a sample never waits for the service"
    source.close()
    with pytest.raises(Absent, match="the service of jtop is gone"):
        source.read()


def test_jtop_does_not_add_a_thor_s_input_to_its_parts() -> None:
    rails = {"VDD_GPU": {"power": 37528}, "VIN_SYS_5V0": {"power": 18331}, "VIN": {"power": 87426}}
    board = type("Thor", (FakeJtop,), {"power": {"rail": rails, "tot": {"power": 143285, "avg": 0}}})
    assert JtopSource(0.5, board).read() == Reading(power_w=87.426)


def test_a_jtop_without_its_service_gives_a_reason() -> None:
    class NoService(FakeJtop):
        def start(self) -> None:
            raise RuntimeError("The jtop.service is not active. Please run:\nsudo systemctl restart jtop.service")

    with pytest.raises(Absent, match=r"jtop: The jtop.service is not active. Please run:$"):
        JtopSource(0.5, NoService)


def test_trapezoids_equal_the_integral_of_a_ramp() -> None:
    meter = EnergyMeter()
    for time_s in np.linspace(3.0, 5.0, 9):
        meter.add(float(time_s), Reading(power_w=10 * (float(time_s) - 3)))
    assert meter.energy_j == pytest.approx(20.0)  # 10 t over 2 s
    assert (meter.duration_s, meter.mean_w, meter.peak_w) == (2.0, pytest.approx(10.0), 20.0)


def test_counters_are_differences_whatever_they_begin_with() -> None:
    meter = EnergyMeter()
    for time_s, energy_j in ((0.0, 1000.0), (1.0, 1004.0), (3.0, 1010.0)):
        meter.add(time_s, Reading(energy_j=energy_j))
    assert (meter.energy_j, meter.mean_w, meter.peak_w) == (10.0, pytest.approx(10 / 3), 4.0)


def test_a_meter_that_read_once_has_no_energy() -> None:
    meter = EnergyMeter()
    assert (meter.mean_w, meter.duration_s) == (0.0, 0.0)
    meter.add(1.0, Reading(power_w=5.0))
    assert (meter.energy_j, meter.mean_w, meter.peak_w) == (0.0, 0.0, 5.0)


def test_a_counter_wraps() -> None:
    counter = WrappingCounter(100)
    assert [counter.add(count) for count in (90, 99, 5, 5, 4)] == [0, 9, 15, 15, 114]


def test_kernel_temperatures(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / "sys/class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("thermal/thermal_zone0/type", "cpu-thermal\n")
    write("thermal/thermal_zone0/temp", "48250\n")
    write("thermal/thermal_zone1/type", "gpu-thermal\n")
    write("thermal/thermal_zone1/temp", "\n")  # a GPU without power
    write("hwmon/hwmon2/name", "coretemp\n")
    write("hwmon/hwmon2/temp1_input", "61000\n")
    write("hwmon/hwmon2/temp1_label", "Package id 0\n")
    write("hwmon/hwmon3/name", "nvme\n")
    write("hwmon/hwmon3/temp1_input", "-5000\n")
    write("hwmon/hwmon4/name", "nvme\n")
    write("hwmon/hwmon4/temp1_input", "39850\n")
    assert KernelThermometers(tmp_path).read() == {
        "cpu-thermal": pytest.approx(48.25),
        "coretemp Package id 0": pytest.approx(61.0),
        "nvme": pytest.approx(-5.0),
        "nvme #2": pytest.approx(39.85),
    }


def test_parts_are_measured_together_and_a_board_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", str(tmp_path))
    sources, reasons = find_power_sources(0.1, write_rapl(tmp_path, {"intel-rapl:0": ("package-0", 1, 10)}))
    assert [source.name for source in sources] == ["GPU (NVIDIA RTX A2000) by NVML", "CPU package by RAPL"]
    assert reasons == []
    sources, reasons = find_power_sources(0.1, tmp_path / "empty")
    assert [source.name for source in sources] == ["GPU (NVIDIA RTX A2000) by NVML"]
    assert reasons == ["no RAPL counters under /sys/class/powercap"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_power_sources(0.1, tmp_path / "empty") == (
        [],
        [
            "jtop: jetson-stats is not installed",
            "no tegrastats command",
            "NVML: nvidia-ml-py is not installed",
            "no RAPL counters under /sys/class/powercap",
        ],
    )
    board = tmp_path / "tegrastats"
    board.write_text(
        f"#!{sys.executable}\nimport time\nwhile True: print({ORIN_NX_JETPACK_7_2!r}, flush=True); time.sleep(0.1)\n"
    )
    board.chmod(0o755)
    (source,), reasons = find_power_sources(0.1, tmp_path)
    assert (source.name, reasons) == ("board, VDD_IN by tegrastats", [])
    source.close()
