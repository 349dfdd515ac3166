"""Predict bundles on this CPU, run them, and write the errors: python tools/check_predictions.py OUTPUT BUNDLE..."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rfedge.bundle.artifact import load_bundle
from rfedge.io.atomic import atomic_file
from rfedge.policies import find_bundle
from rfedge.records.machine import provenance
from rfedge.runtimes.roofline.report import inspect_bundle

THREADS = 1


def main(output: Path, bundles: list[Path]) -> None:
    rows, devices = [], []
    for path in bundles:
        bundle = load_bundle(find_bundle(path))
        inspection = inspect_bundle(bundle, devices=("this-cpu",), threads=THREADS)
        (prediction,), measured = inspection.predictions, inspection.measured
        assert measured is not None
        devices.append(prediction.device)
        rows.append(
            {
                "bundle": path.name,
                "precision": bundle.manifest.precision.requested,
                "low_ms": prediction.low_ms,
                "middle_ms": prediction.middle_ms,
                "high_ms": prediction.high_ms,
                "measured_ms": measured.p50_ms,
                "num_calls": measured.num_calls,
                "error": prediction.middle_ms / measured.p50_ms - 1,
            }
        )
        print(f"{path.name}: {prediction.low_ms:.1f} to {prediction.high_ms:.1f}, measured {measured.p50_ms:.1f} ms")
    cpu = devices[0]
    document = {
        "format": "rfedge-predictions",
        "schema_version": 1,
        **{name: value.model_dump() if name == "machine" else value for name, value in provenance().items()},
        "threads": THREADS,
        "device": {
            "fp32_flops": cpu.peaks["fp32"],
            "int8_ops": cpu.peaks["int8"],
            "bandwidth_bytes": cpu.bandwidth,
            "launch_us": cpu.least_launch_us,
        },
        "bundles": rows,
    }
    with atomic_file(output) as temporary:
        temporary.write_text(json.dumps(document, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
