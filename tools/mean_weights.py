"""Average the weights of checkpoints of one policy, trained after each other or beside each other.

python tools/mean_weights.py A B --output FOLDER    writes FOLDER/checkpoint; tokenizer and history are those of B
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from rfedge.errors import RfedgeError
from rfedge.model import checkpoint_sha256, load_checkpoint, save_checkpoint


def write_mean(sources: list[Path], target: Path) -> None:
    """Write the mean of the weights at `sources` to `target`; the last one gives all that is no weight."""
    states = [load_checkpoint(source).policy.state_dict() for source in sources]
    last = load_checkpoint(sources[-1])
    means = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
    last.policy.load_state_dict({name: means[name].to(tensor.dtype) for name, tensor in states[-1].items()})
    metadata = {**last.metadata, "mean_of_checkpoint_sha256": [checkpoint_sha256(source) for source in sources]}
    save_checkpoint(target, last.policy, last.tokenizer, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        write_mean(options.checkpoints, options.output / "checkpoint")
    except RfedgeError as error:
        sys.exit(f"mean_weights: {error}")


if __name__ == "__main__":
    main()
