"""Write a checkpoint of a preset with random weights, to measure a size that nobody trained here.

python tools/random_checkpoint.py M-3B out/checkpoint
rfedge export out/checkpoint --precision fp32 --force --output out/fp32
rfedge export out/checkpoint --precision int8 --force --data DEMOS --calibration-frames 8 --parity-steps 4 --output out/int8
rfedge bench latency out/int8 out/fp32 --checkpoint out/checkpoint --isolate --baseline openvino
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rfedge.config import preset
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import save_checkpoint
from rfedge.model.meta import random_policy
from rfedge.train.batches.wording import TABLETOP_WORDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = preset(arguments.preset)
    tokenizer = InstructionTokenizer.from_corpus(
        TABLETOP_WORDS, vocab_size=config.decoder.vocab_size, text_length=config.decoder.text_length
    )
    weights = {"weights": f"random, seed {arguments.seed}"}
    save_checkpoint(arguments.output, random_policy(config, arguments.seed), tokenizer, weights)


if __name__ == "__main__":
    main()
