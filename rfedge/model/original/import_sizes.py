"""The shapes in the original files -> the policy's configuration, checked against each other and against a preset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from rfedge.config import DecoderConfig, LSTMHeadConfig, PolicyConfig, ResamplerConfig, VisionConfig, preset, preset_names
from rfedge.errors import ArtifactError, ConfigError
from rfedge.messages import POSE_SIZE
from rfedge.model.original.names import split_third
from rfedge.model.original.plan import PlannedFile, names_of
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


class FoundSizes(NamedTuple):
    """Sizes that the files show; None where no file holds the part."""

    vision: VisionConfig | None
    resampler: ResamplerConfig | None
    cross_attention: CrossAttention | None
    head: HeadSizes | None
    vocabulary: tuple[str, int] | None  # the file that has it, and its rows


def find_sizes(files: Mapping[str, PlannedFile], decoder: DecoderConfig, vision_heads: int | None) -> FoundSizes:
    """Look at CLIP, OpenFlamingo and RoboFlamingo; ArtifactError where a file has another role or language model."""
    shapes = {role: shapes_of(planned, decoder.kind) for role, planned in files.items()}
    names = {role: planned.file.path.name for role, planned in files.items()}
    order = [role for role in ("roboflamingo", "openflamingo") if role in files]
    for role in order:
        _check_path(files[role], decoder.kind)
    visions = [vision_of(shapes[role], vision_heads, file=names[role]) for role in ("clip", "roboflamingo") if role in files]
    if "clip" in files and visions[0] is None:
        raise _wrong_role(names["clip"], "CLIP", "no vision transformer", "visual.conv1.weight and the blocks after it")
    heads = {role: head_of(shapes[role], file=names[role]) for role in order}
    if heads.get("openflamingo") is not None:
        raise _wrong_role(names["openflamingo"], "OpenFlamingo", "a policy head", "none: give it as --roboflamingo")
    if "roboflamingo" in files and heads["roboflamingo"] is None:
        raise _wrong_role(names["roboflamingo"], "RoboFlamingo", "no policy head", "lm_head.rnn.*, the released LSTM head")
    crosses = {role: cross_attention_of(shapes[role], decoder.layers, file=names[role]) for role in order}
    if "openflamingo" in files and crosses["openflamingo"] is None:
        raise _wrong_role(names["openflamingo"], "OpenFlamingo", "no cross-attention", "gated_cross_attn_layer.*")
    expected, remedy = f"width {decoder.width}, that of the language model", "Give files of the same model."
    for role in reversed(order):
        found = crosses[role]
        if found is not None and found.width != decoder.width:
            what = "OpenFlamingo" if role == "openflamingo" else "RoboFlamingo"
            raise ArtifactError(f"{what} file {names[role]}", got=describe_family(found), expected=expected, remedy=remedy)
    first, second = crosses.get("openflamingo"), crosses.get("roboflamingo")
    if first is not None and second is not None and first != second:
        expected = f"{describe_family(second)} of {names['roboflamingo']}"
        subject = f"OpenFlamingo file {names['openflamingo']}"
        raise ArtifactError(subject, got=describe_family(first), expected=expected, remedy=remedy)
    resamplers = [resampler_of(shapes[role]) for role in order]
    rows = [(names[role], shapes[role]["embedding.weight"][0]) for role in order if "embedding.weight" in shapes[role]]
    return FoundSizes(_first(visions), _first(resamplers), first or second, heads.get("roboflamingo"), _first(rows))


def policy_config(
    found: FoundSizes, decoder: DecoderConfig, base: PolicyConfig | None, options: ImportOptions, vocab_size: int
) -> PolicyConfig:
    """Join what the files show, the preset and the options; the files' sizes must be those of the preset `base`."""
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
    like, cross = base or preset(_RELEASED[decoder.kind]), found.cross_attention
    updates: dict[str, Any] = {
        "vocab_size": vocab_size,
        "text_length": options.text_length or like.decoder.text_length,
        "feature": options.feature or like.decoder.feature,
        "cross_attention_every": cross.every if cross else like.decoder.cross_attention_every,
        "gate_init": 0.0,  # also for a new cross-attention: it must not disturb what the language model learnt
    }
    if cross is not None:
        updates |= {"cross_attention_heads": cross.heads, "mlp_ratio": cross.mlp_ratio}
    if options.keep_output_projection:
        if decoder.kind in ("mosaic_gpt", "mpt"):
            got = f"a language model of kind {decoder.kind}"
            remedy = "Leave it out: MPT's logits are MatMuls with its embedding, which is always kept."
            raise ConfigError("--keep-output-projection", got=got, expected="gpt_neox or llama", remedy=remedy)
        updates["output_projection"] = True
    chunk_size = options.chunk_size or like.chunk_size
    fusion: str = options.fusion or like.fusion
    if found.head is not None:
        chunk_size, fusion = found.head.chunk_size, _fusion(found.head, decoder, fusion, options)
        if options.chunk_size not in (None, chunk_size):
            expected, remedy = f"{chunk_size}, the actions that the file's head returns", "Leave it out."
            raise ConfigError("--chunk-size", got=options.chunk_size, expected=expected, remedy=remedy)
    try:
        config = PolicyConfig(
            name=base.name if base else "imported",
            vision=found.vision,
            resampler=found.resampler or like.resampler,
            decoder=decoder.model_copy(update=updates),
            head=found.head.head if found.head else like.head,
            pooling=options.pooling or like.pooling,
            fusion=fusion,
            window=options.window or like.window,
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
        field, in_files, in_preset = difference
        expected, remedy = f"{in_preset}, as the preset has it", "Give the files of this model, or leave --config out."
        raise ConfigError(f"--config {base.name}: {field}", got=f"{in_files} in the files", expected=expected, remedy=remedy)
    return config


def _fusion(head: HeadSizes, decoder: DecoderConfig, wanted: str, options: ImportOptions) -> str:
    """Return the fusion whose feature the file's head reads; only two_way's is twice as wide."""
    ratio = head.feature_size / decoder.width
    if ratio not in (1.0, 2.0):
        got = f"an LSTM over {head.feature_size} numbers"
        expected = f"{decoder.width} or twice as many, the width of the language model"
        raise ArtifactError("RoboFlamingo file", got=got, expected=expected, remedy="The file is of another model.")
    if ratio == 2.0 and options.fusion in (None, "two_way"):
        return "two_way"
    if (wanted == "two_way") == (ratio == 2.0):
        return wanted
    remedy = f"The file's LSTM reads {head.feature_size} numbers."
    raise ConfigError("--fusion", got=wanted, expected="two_way" if ratio == 2.0 else "post or pre", remedy=remedy)


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


def _wrong_role(file: str, what: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{what} file {file}", got=got, expected=expected, remedy="The file is something else; check the options."
    )


def _first(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)


Shapes = Mapping[str, tuple[int, ...]]

# No tensor tells into how many heads a MatMul is split; all released models have heads of this size.
HEAD_SIZE: Final = 64
_BLOCK = re.compile(r"backbone\.decoder\.layers\.(\d+)\.(cross_attention|block)\.(.+)")


class CrossAttention(NamedTuple):
    """The gated cross-attention of one file: width of the language model, and before every how many blocks."""

    width: int
    every: int
    heads: int
    mlp_ratio: int


class HeadSizes(NamedTuple):
    head: LSTMHeadConfig
    feature_size: int
    chunk_size: int


def shapes_of(planned: PlannedFile, kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file under our names; q, k and v that are apart count as one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, named in names_of(planned, kind).items():
        if named:
            name, third = split_third(named)
            shape = planned.file.shapes[key]
            shapes.setdefault(name, (3 * shape[0], *shape[1:]) if third else shape)
    return shapes


def vision_of(shapes: Shapes, heads: int | None, *, file: str) -> VisionConfig | None:
    """Return the vision transformer, or None; ArtifactError for one that the policy cannot hold."""
    part = _under(shapes, "backbone.vision.")
    if "conv1.weight" not in part or "positional_embedding" not in part:
        return None
    width, _, patch_size = part["conv1.weight"][:3]
    patches = part["positional_embedding"][-2] - 1
    side = round(patches**0.5)
    blocks = _indices(part, r"blocks\.(\d+)\.")
    if side * side != patches or not blocks:
        raise _unfit(file, f"{patches} patches, {len(blocks)} blocks", "a vision transformer over square images")
    ratio = part.get("blocks.0.mlp_up.weight", (4 * width,))[0] // width
    heads = heads or max(1, width // HEAD_SIZE)
    if width % heads:
        raise _unfit(file, f"width {width} in {heads} heads", "a number of --vision-heads that divides the width")
    return VisionConfig(
        image_size=side * patch_size, patch_size=patch_size, width=width, layers=len(blocks), heads=heads, mlp_ratio=ratio
    )


def resampler_of(shapes: Shapes) -> ResamplerConfig | None:
    """Return the resampler, or None where the file holds none."""
    part = _under(shapes, "backbone.resampler.")
    layers = _indices(part, r"layers\.(\d+)\.")
    if "latents" not in part or not layers or "layers.0.attention.to_q.weight" not in part:
        return None
    latents, width = part["latents"]
    return ResamplerConfig(
        layers=len(layers),
        latents=latents,
        heads=part["layers.0.attention.to_q.weight"][0] // HEAD_SIZE,
        mlp_ratio=part.get("layers.0.feed_forward.up.weight", (4 * width,))[0] // width,
        per_camera=any(name.startswith("backbone.resampler_gripper.") for name in shapes),
    )


def cross_attention_of(shapes: Shapes, num_blocks: int, *, file: str) -> CrossAttention | None:
    """Return the gated cross-attention, or None; ArtifactError where it is not before every n-th of `num_blocks` blocks."""
    found = {int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name)) and match[2] == "cross_attention"}
    if not found:
        return None
    first = min(found)
    prefix = f"backbone.decoder.layers.{first}.cross_attention."
    to_q, up = shapes.get(f"{prefix}attention.to_q.weight"), shapes.get(f"{prefix}feed_forward.up.weight")
    if to_q is None or up is None:
        raise _unfit(file, f"an incomplete cross-attention before block {first}", "to_q and the feed-forward")
    every = first + 1
    expected = set(range(first, num_blocks, every))
    if found != expected:
        raise _unfit(
            file,
            f"cross-attention before {_ranges(found)} of width {to_q[1]}{_released_like(to_q[1], every)}",
            f"before {_ranges(expected)}, every {_ordinal(every)} of {num_blocks} blocks",
        )
    return CrossAttention(to_q[1], every, to_q[0] // HEAD_SIZE, up[0] // up[1])


def head_of(shapes: Shapes, *, file: str) -> HeadSizes | None:
    """Return the LSTM head, or None; ArtifactError where its two MLPs do not fit each other."""
    part = _under(shapes, "head.")
    layers = _indices(part, r"rnn\.weight_ih_l(\d+)")
    if not layers or "rnn.weight_hh_l0" not in part:
        return None
    pose, gripper = (
        [part[f"{mlp}.{index}.weight"][0] for index in sorted(_indices(part, rf"{mlp}\.(\d+)\.weight"))]
        for mlp in ("pose", "gripper")
    )
    if not pose or not gripper or pose[:-1] != gripper[:-1] or pose[-1] != POSE_SIZE * gripper[-1]:
        raise _unfit(
            file, f"outputs {pose} and {gripper}", f"two MLPs of the same sizes, with {POSE_SIZE} and 1 output a step"
        )
    head = LSTMHeadConfig(hidden_size=part["rnn.weight_hh_l0"][1], layers=len(layers), mlp_sizes=tuple(pose[:-1]))
    return HeadSizes(head, part["rnn.weight_ih_l0"][1], gripper[-1])


def describe_family(found: CrossAttention) -> str:
    """Say a language model's width and its cross-attention, with the released models that have both."""
    like = _released_like(found.width, found.every)
    return f"width {found.width}, cross-attention every {_ordinal(found.every)} block{like}"


def _released_like(width: int, every: int) -> str:
    names = [
        name
        for name in preset_names()
        if preset(name).decoder.width == width and preset(name).decoder.cross_attention_every == every
    ]
    return f" (as {' or '.join(names)})" if names else ""


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _indices(names: Mapping[str, Any], pattern: str) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _ranges(numbers: Sequence[int] | set[int]) -> str:
    listed = sorted(numbers)
    return f"blocks {', '.join(map(str, listed[:3]))}{', ..., ' + str(listed[-1]) if len(listed) > 3 else ''}"


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _unfit(file: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"weights {file}", got=got, expected=expected, remedy="The file is of another model.")
