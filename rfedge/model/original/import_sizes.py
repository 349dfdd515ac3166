"""The policy's configuration from the shapes in the original files, checked against each other and against a preset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from rfedge.config import (
    DecoderConfig,
    LSTMHeadConfig,
    PolicyConfig,
    ResamplerConfig,
    VisionConfig,
    preset,
    preset_names,
)
from rfedge.errors import ArtifactError, ConfigError
from rfedge.model.original.plan import PlannedFile
from rfedge.model.original.sizes import (
    CrossAttention,
    HeadSizes,
    cross_attention_of,
    describe_family,
    head_of,
    resampler_of,
    shapes_of,
    vision_of,
)
from rfedge.records.import_options import ImportOptions

_T = TypeVar("_T")

# The path of the blocks in a file of OpenFlamingo or RoboFlamingo -> kinds of language models that have it.
_PATHS: Final[dict[str, tuple[str, ...]]] = {
    r"(?:^|\.)transformer\.(?:blocks\.|wte\.)": ("mosaic_gpt", "mpt"),
    r"(?:^|\.)gpt_neox\.(?:layers\.|embed_in\.)": ("gpt_neox",),
    r"(?:^|\.)lang_encoder\.model\.(?:layers\.|embed_tokens\.)": ("llama",),
}
# The released model of a kind says what a language model alone does not.
_RELEASED: Final = {"mosaic_gpt": "M-3B", "gpt_neox": "G-4B", "llama": "L-9B", "mpt": "M-9B"}
_WINDOW: Final = 12
_TEXT_LENGTH: Final = 32
_HIDDEN_SIZE: Final = 1024  # of the released heads


class FoundSizes(NamedTuple):
    """What the files show; None where no file holds the part."""

    vision: VisionConfig | None
    resampler: ResamplerConfig | None
    cross_attention: CrossAttention | None
    head: HeadSizes | None
    vocabulary: tuple[str, int] | None  # the file that has it, and its rows


def find_sizes(files: Mapping[str, PlannedFile], decoder: DecoderConfig, vision_heads: int | None) -> FoundSizes:
    """Look at CLIP, OpenFlamingo and RoboFlamingo.

    Args:
        vision_heads: attention heads of CLIP's vision transformer; heads of 64 without.

    Raises:
        ArtifactError: a file has another role, or is of another language model; the text says which.
    """
    shapes = {role: shapes_of(planned, decoder.kind) for role, planned in files.items()}
    names = {role: planned.file.path.name for role, planned in files.items()}
    for role in ("openflamingo", "roboflamingo"):
        if role in files:
            _check_path(files[role], decoder.kind)
    visions = [vision_of(shapes[role], vision_heads, file=names[role]) for role in ("clip", "roboflamingo") if role in files]
    if "clip" in files and visions[0] is None:
        raise _wrong_role(names["clip"], "CLIP", "no vision transformer", "visual.conv1.weight and the blocks after it")
    heads = {role: head_of(shapes[role], file=names[role]) for role in ("openflamingo", "roboflamingo") if role in files}
    if heads.get("openflamingo") is not None:
        raise _wrong_role(names["openflamingo"], "OpenFlamingo", "a policy head", "none: give it as --roboflamingo")
    if "roboflamingo" in files and heads["roboflamingo"] is None:
        raise _wrong_role(names["roboflamingo"], "RoboFlamingo", "no policy head", "lm_head.rnn.*, the released LSTM head")
    crosses: dict[str, CrossAttention] = {}
    for role, what in (("openflamingo", "OpenFlamingo"), ("roboflamingo", "RoboFlamingo")):
        if role not in files:
            continue
        found = cross_attention_of(shapes[role], decoder.layers, file=names[role])
        if found is None and role == "openflamingo":
            raise _wrong_role(names[role], what, "no cross-attention", "gated_cross_attn_layer.*")
        if found is not None:
            _check_width(names[role], what, found, decoder)
            crosses[role] = found
    if len(set(crosses.values())) > 1:
        raise ArtifactError(
            f"OpenFlamingo file {names['openflamingo']}",
            got=describe_family(crosses["openflamingo"].width, crosses["openflamingo"].every),
            expected=f"{describe_family(crosses['roboflamingo'].width, crosses['roboflamingo'].every)} "
            f"of {names['roboflamingo']}",
            remedy="Give files of the same model.",
        )
    order = [role for role in ("roboflamingo", "openflamingo") if role in files]
    resamplers = [resampler_of(shapes[role]) for role in order]
    rows = [(names[role], shapes[role]["embedding.weight"][0]) for role in order if "embedding.weight" in shapes[role]]
    return FoundSizes(_first(visions), _first(resamplers), _first(crosses.values()), heads.get("roboflamingo"), _first(rows))


def policy_config(
    found: FoundSizes, decoder: DecoderConfig, base: PolicyConfig | None, options: ImportOptions, vocab_size: int
) -> PolicyConfig:
    """Join what the files show, the preset and the options.

    Args:
        decoder: of the language model; its vocabulary and cross-attention are replaced.
        base: the preset, if one was named; its name is kept and its sizes must be those of the files.

    Raises:
        ArtifactError: tokenizer and embedding have different sizes, or there is no CLIP.
        ConfigError: the files contradict the preset or a setting.
    """
    if found.vocabulary is not None and found.vocabulary[1] != vocab_size:
        raise ArtifactError(
            "tokenizer",
            got=f"{vocab_size} tokens with those of OpenFlamingo",
            expected=f"{found.vocabulary[1]}, the rows of the embedding in {found.vocabulary[0]}",
            remedy="Give the tokenizer of this model with --tokenizer.",
        )
    if found.vision is None:
        raise ArtifactError(
            "CLIP", got="no file", expected="one", remedy="Pass --clip openai/clip-vit-large-patch14 or a file of it."
        )
    like = base or preset(_RELEASED[decoder.kind])
    cross = found.cross_attention
    updates: dict[str, Any] = {
        "vocab_size": vocab_size,
        "text_length": options.text_length or (base.decoder.text_length if base else _TEXT_LENGTH),
        "feature": options.feature or like.decoder.feature,
        "cross_attention_every": cross.every if cross else like.decoder.cross_attention_every,
        "gate_init": 0.0,  # also for a new cross-attention: it must not disturb what the language model learnt
    }
    if cross is not None:
        updates |= {"cross_attention_heads": cross.heads, "mlp_ratio": cross.mlp_ratio}
    if options.keep_output_projection:
        if decoder.kind in ("mosaic_gpt", "mpt"):
            raise ConfigError(
                "--keep-output-projection",
                got=f"a language model of kind {decoder.kind}",
                expected="gpt_neox or llama",
                remedy="Leave it out: MPT's logits are MatMuls with its embedding, which is always kept.",
            )
        updates["output_projection"] = True
    chunk_size = _chunk_size(found, base, options)
    fusion = _fusion(found, decoder, base, options)
    try:
        config = PolicyConfig(
            name=base.name if base else "imported",
            vision=found.vision,
            resampler=found.resampler or like.resampler,
            decoder=decoder.model_copy(update=updates),
            head=found.head.head if found.head else base.head if base else LSTMHeadConfig(hidden_size=_HIDDEN_SIZE),
            pooling=options.pooling or (base.pooling if base else "max"),
            fusion=fusion,
            window=options.window or (base.window if base else _WINDOW),
            time_keeping="window",
            chunk_size=chunk_size,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "import settings", got=first["msg"], expected="settings that fit each other", remedy="Change them."
        ) from None
    if base is None:
        same = [name for name in preset_names() if _difference(config, preset(name)) is None]
        return config.model_copy(update={"name": same[0]}) if same else config
    if (difference := _difference(config, base)) is not None:
        field, got, expected = difference
        raise ConfigError(
            f"--config {base.name}: {field}",
            got=f"{got} in the files",
            expected=f"{expected}, as the preset has it",
            remedy="Give the files of this model, or leave --config out.",
        )
    return config


def _chunk_size(found: FoundSizes, base: PolicyConfig | None, options: ImportOptions) -> int:
    if found.head is None:
        return options.chunk_size or (base.chunk_size if base else 1)
    if options.chunk_size not in (None, found.head.chunk_size):
        raise ConfigError(
            "--chunk-size",
            got=options.chunk_size,
            expected=f"{found.head.chunk_size}, the actions that the file's head returns",
            remedy="Leave it out.",
        )
    return found.head.chunk_size


def _fusion(found: FoundSizes, decoder: DecoderConfig, base: PolicyConfig | None, options: ImportOptions) -> str:
    wanted = options.fusion or (base.fusion if base else None)
    if found.head is None:
        return wanted or "post"
    ratio = found.head.feature_size / decoder.width
    if ratio not in (1.0, 2.0):
        raise ArtifactError(
            "RoboFlamingo file",
            got=f"an LSTM over {found.head.feature_size} numbers",
            expected=f"{decoder.width} or twice as many, the width of the language model",
            remedy="The file is of another model.",
        )
    inferred = "two_way" if ratio == 2.0 else (wanted or "post")
    if (inferred == "two_way") != (ratio == 2.0) or (options.fusion or inferred) != inferred:
        raise ConfigError(
            "--fusion",
            got=wanted,
            expected="two_way" if ratio == 2.0 else "post or pre",
            remedy=f"The file's LSTM reads {found.head.feature_size} numbers.",
        )
    return inferred


def _difference(config: PolicyConfig, base: PolicyConfig) -> tuple[str, object, object] | None:
    """Return the first size in which two policies differ, and both values."""
    for part in ("vision", "resampler", "decoder", "head"):
        left, right = getattr(config, part).model_dump(), getattr(base, part).model_dump()
        for field in sorted(left.keys() | right.keys()):
            if field not in _NO_SIZES and left.get(field) != right.get(field):
                return f"{part}.{field}", left.get(field), right.get(field)
    return None


# Fields that change no shape, or that an option of the import may change.
_NO_SIZES: Final = ("text_length", "gate_init", "feature", "output_projection", "dropout", "per_camera")


def _check_path(planned: PlannedFile, kind: str) -> None:
    for pattern, kinds in _PATHS.items():
        if kind not in kinds and any(re.search(pattern, key) for key in planned.file.shapes):
            raise ArtifactError(
                f"weights {planned.file.path.name}",
                got=f"blocks of {' or '.join(kinds)}",
                expected=f"{kind}, as the language model",
                remedy="Give files of the same model.",
            )


def _check_width(file: str, what: str, found: CrossAttention, decoder: DecoderConfig) -> None:
    if found.width != decoder.width:
        raise ArtifactError(
            f"{what} file {file}",
            got=describe_family(found.width, found.every),
            expected=f"width {decoder.width}, that of the language model",
            remedy="Give files of the same model.",
        )


def _wrong_role(file: str, what: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{what} file {file}", got=got, expected=expected, remedy="The file is something else; check the options."
    )


def _first(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)
