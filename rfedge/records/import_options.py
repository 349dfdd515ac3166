"""Options of an import of original files; apart from it, so that a command line is read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from rfedge.config import Feature
from rfedge.records.plan import Option

_SOURCE: Final = "A file, a folder, a Hugging Face id (organisation/name, then /file and @revision) or its cache folder."


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Given options. Where no tensor shows a size, None is the preset's, or that of the released models without one."""

    roboflamingo: Annotated[str | None, Option(f"RoboFlamingo's .pth; without one the head is initialised. {_SOURCE}")] = (
        None
    )
    openflamingo: Annotated[
        str | None, Option("OpenFlamingo's checkpoint.pt; not needed where the .pth holds the same parts.")
    ] = None
    clip: Annotated[str | None, Option("CLIP ViT-L/14 of OpenAI, in the names of open_clip, transformers or timm.")] = None
    language_model: Annotated[
        str | None, Option("Folder of the language model; not needed where the .pth holds its blocks.", flag="--lm")
    ] = None
    tokenizer: Annotated[str | None, Option("Folder with tokenizer.json; that of --lm without.")] = None
    config: Annotated[str | None, Option("Preset whose sizes the files must have, such as M-3B.")] = None
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], Option("Of the weights on disk; a policy computes in fp32 whatever it is.")
    ] = "fp32"
    fusion: Annotated[Literal["post", "pre", "two_way"] | None, Option("How the cameras come together; released: post.")] = (
        None
    )
    pooling: Annotated[Literal["max", "average"] | None, Option("Over the tokens; released: max.")] = None
    window: Annotated[int | None, Option("Frames that the head remembers; released: 12.", min=1)] = None
    feature: Annotated[
        Feature | None, Option("State that the head reads; released: last_block_input for MPT-1B, final_norm for others.")
    ] = None
    chunk_size: Annotated[
        int | None, Option("Actions per inference, of a head that is initialised; a file's head shows its own.", min=1)
    ] = None
    text_length: Annotated[int | None, Option("Tokens of the padded prompt; released: 32.", min=4)] = None
    vision_heads: Annotated[int | None, Option("Attention heads of CLIP; heads of 64 without.", min=1)] = None
    keep_output_projection: Annotated[bool, Option("Keep what turns states into words, for co-training.")] = False
    seed: Annotated[int, Option("Initialises what no file holds.", min=0)] = 0
