"""Plan of an import, made before anything is written: files, sizes, every tensor's place, what is assumed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from rfedge.config import DecoderConfig, PolicyConfig, preset
from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.disk import read_json
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model.checkpoint import TensorSpec
from rfedge.model.decoder import GatedCrossAttention
from rfedge.model.head import build_head
from rfedge.model.original.import_sizes import find_sizes, policy_config
from rfedge.model.original.language_models import TOKENIZER_FILES, UPSTREAM, decoder_config, flamingo_tokenizer, weight_files
from rfedge.model.original.plan import PlannedFile, Role, WeightPlan, plan_weights
from rfedge.model.original.sources import Source, open_source, some_of
from rfedge.model.original.tensor_files import open_tensor_file
from rfedge.model.policy import RoboFlamingo
from rfedge.model.resampler import PerceiverResampler
from rfedge.records.import_options import ImportOptions

Part = Literal["vision", "resampler", "cross-attention", "decoder", "embedding", "head", "output projection"]

_PARTS: Final[tuple[tuple[str, Part], ...]] = (
    (r"backbone\.vision\.", "vision"),
    (r"backbone\.(?:resampler|resampler_gripper)\.", "resampler"),
    (r"backbone\.decoder\.layers\.\d+\.cross_attention\.", "cross-attention"),
    (r"backbone\.decoder\.", "decoder"),
    (r"head\.", "head"),
    (r"output_projection\.", "output projection"),
    (r"", "embedding"),
)
_MODULE = re.compile(
    r"(backbone\.resampler|backbone\.resampler_gripper|backbone\.decoder\.layers\.(\d+)\.cross_attention|head)\.(.+)"
)
# What transformers initialises rows of new tokens with.
_NEW_ROW_DEVIATION: Final = 0.02


def part_of(name: str) -> Part:
    """Return the part of the paper that one of our tensors belongs to."""
    return next(part for pattern, part in _PARTS if re.match(pattern, name))


@dataclass(slots=True)
class SeededInit:
    """Initialises the parts of one policy; a part has the same values whichever others are initialised."""

    config: PolicyConfig
    seed: int
    _module: str = field(default="", repr=False)
    _values: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the resampler, of a cross-attention or of the head, float32."""
        match = _MODULE.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: not of a part that can be initialised")
        module, layer, rest = match.groups()
        if module != self._module:
            self._values = {}  # before the next one is built, or two are in memory at once
            self._values = dict(self._draw(module, layer).state_dict())
            self._module = module
        return self._values[rest]

    def rows(self, count: int, width: int) -> torch.Tensor:
        """Return embeddings (count, width) of tokens that the language model did not know."""
        with torch.random.fork_rng(devices=[]):
            self._seed(3, 0)
            return torch.randn(count, width) * _NEW_ROW_DEVIATION

    def _draw(self, module: str, layer: str | None) -> nn.Module:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            if layer is not None:
                self._seed(0, int(layer))
                return GatedCrossAttention(config.decoder, config.vision.width)
            if module == "head":
                self._seed(1, 0)
                return build_head(config.head, config.feature_size, config.chunk_size, config.window)
            self._seed(2, int(module.endswith("_gripper")))
            return PerceiverResampler(config.resampler, config.vision.width)

    def _seed(self, part: int, index: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([self.seed, part, index]).generate_state(1, np.uint64)[0] >> 1))


DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PATTERNS: Final[dict[str, tuple[str, ...]]] = {
    "roboflamingo": ("*.pth", "*.pt"),
    "openflamingo": ("checkpoint.pt", "*.pt"),
    "clip": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "model.safetensors",
        "pytorch_model.bin",
        "*.safetensors",
        "*.bin",
        "*.pt",
    ),
}
_ROLES: Final[tuple[Role, ...]] = ("roboflamingo", "openflamingo", "clip")
_TITLES: Final = {"roboflamingo": "RoboFlamingo", "openflamingo": "OpenFlamingo", "clip": "CLIP"}
_FINAL_NORM: Final = "backbone.decoder.ln_f."


class SourceFile(NamedTuple):
    role: Role | Literal["tokenizer"]
    path: Path
    repository: str | None
    revision: str | None


@dataclass(slots=True)
class ImportPlan:
    """Everything that is known before the first byte is written."""

    config: PolicyConfig
    tokenizer: InstructionTokenizer
    weights: WeightPlan
    files: list[SourceFile]
    options: ImportOptions
    initialised: list[str] = field(default_factory=list)  # names of ours that are sampled from the seed
    # names of ours with the one value that fills them, because nothing runs them
    filled: dict[str, float] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)  # sentences on what no file says
    warnings: list[str] = field(default_factory=list)  # half-sentences on what a file's name says otherwise
    epoch: int | None = None

    @property
    def missing(self) -> list[str]:
        """Names of ours without which nothing can be written."""
        given = {*self.initialised, *self.filled}
        return [name for name in self.weights.missing if name not in given]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        dtype = DTYPES[self.options.dtype]
        return {name: TensorSpec(dtype, shape) for name, shape in self.weights.shapes.items()}

    @property
    def size_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self.specs.values())

    def check(self) -> None:
        """Raise ArtifactError unless every tensor has its place; the text names the first ten that have not."""
        self.weights.check(self.config.name)
        if self.missing:
            remedies = dict.fromkeys(_remedy(name, self.config, self.options) for name in self.missing)
            got = f"{len(self.missing)} tensors in no file: {some_of(self.missing)}"
            expected = f"all {len(self.weights.shapes)} of {self.config.name}"
            raise ArtifactError("import", got=got, expected=expected, remedy=" ".join(remedies))

    def reader(self) -> Callable[[str], torch.Tensor]:
        """Return the function that makes each tensor, in the dtype in which it is stored; NaN and Inf are refused."""
        init = SeededInit(self.config, self.options.seed)
        dtype = DTYPES[self.options.dtype]

        def read(name: str) -> torch.Tensor:
            if name in self.filled:
                return torch.full(self.weights.shapes[name], self.filled[name], dtype=dtype)
            if name not in self.weights.pieces:
                return init.tensor(name).to(dtype)
            width = self.weights.shapes[name][-1]
            tensor = self.weights.read(name, lambda rows: init.rows(rows, width)).to(dtype)
            if not math.isfinite(float(tensor.sum(dtype=torch.float32))):  # one that is not makes the sum so
                files = sorted({piece.file.path.name for piece in self.weights.pieces[name]})
                got = f"a value that is no number in {self.options.dtype}"
                remedy = "Copy the file again; if it is whole, use --dtype bf16 or fp32."
                raise ArtifactError(f"weights {', '.join(files)}: {name}", got=got, expected="numbers", remedy=remedy)
            return tensor

        return read


def plan_import(options: ImportOptions) -> ImportPlan:
    """Find the files, the sizes and every tensor's place; nothing is written, and of large files little is read.

    Tensors that are missing or of another shape do not raise here: `ImportPlan.check` does.

    Raises:
        ArtifactError: a file is missing, damaged, or of another model.
        BackendUnavailableError: a Hugging Face repository cannot be reached.
        ConfigError: options contradict each other or the files.
    """
    base = preset(options.config) if options.config is not None else None
    files: dict[str, PlannedFile] = {}
    read: list[SourceFile] = []
    clip_activation = None
    for role in _ROLES:
        given: str | None = getattr(options, role)
        if given is not None:
            source = open_source(given, what=_TITLES[role])
            name = source.choose(_PATTERNS[role], what=_TITLES[role])
            files[role] = _open(role, source, name, read)
            if role == "clip":
                clip_activation = _activation(source)
    language_model = open_source(options.language_model, what="language model") if options.language_model else None
    decoder = _decoder(language_model, base, read)
    tokenizer = _tokenizer(options, language_model, base, read)
    found = find_sizes(files, decoder, options.vision_heads or (base.vision.heads if base else None))
    config = policy_config(found, decoder, base, options, tokenizer.vocab_size)
    before_image = {"tokens_before_image": int(bool(tokenizer.tokens.begin_of_text))}
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update=before_image)})
    with torch.device("meta"):
        state = RoboFlamingo(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    in_order = [files[role] for role in ("clip", "openflamingo", "roboflamingo") if role in files]
    plan = ImportPlan(config, tokenizer, plan_weights(in_order, shapes, decoder.kind), read, options)
    _settle(plan)
    if language_model is not None:
        # What nothing runs is worth a look into a folder, but no download.
        wanted = {*plan.missing, *(plan.filled if language_model.repository is None else ())}
        parts = weight_files(language_model, decoder.kind, wanted)
        opened = [PlannedFile("language model", open_tensor_file(path)) for path in parts]
        read += [_source_file("language model", path, language_model) for path in parts]
        plan.weights = plan_weights([*opened, *in_order], shapes, decoder.kind)
        _settle(plan)
    _describe(plan)
    if "roboflamingo" in files:
        plan.epoch = files["roboflamingo"].file.epoch
        plan.warnings = disagreements(files["roboflamingo"].file.path.name, config)
    if clip_activation is not None:
        plan.warnings.append(f"{clip_activation} says that this CLIP was trained with GELU, the policy computes QuickGELU")
    return plan


def _open(role: Role, source: Source, name: str, read: list[SourceFile]) -> PlannedFile:
    (path,) = source.fetch([name])
    read.append(_source_file(role, path, source))
    return PlannedFile(role, open_tensor_file(path))


def _activation(source: Source) -> str | None:
    """Return the file beside CLIP's weights that says they are of another activation than OpenAI's, if one does."""
    for name in ("open_clip_config.json", "config.json"):
        if not source.has(name):
            continue
        try:
            document = read_json(source.fetch([name])[0])
            vision = document["vision_config"] if name == "config.json" else document["model_cfg"]
            other = (
                vision.get("hidden_act", "quick_gelu") != "quick_gelu"
                if name == "config.json"
                else not vision.get("quick_gelu")
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # timm's config.json, or none of CLIP's at all
        if other:
            return name
    return None


def _source_file(role: Role | Literal["tokenizer"], path: Path, source: Source) -> SourceFile:
    return SourceFile(role, path, source.repository, source.revision if source.repository else None)


def _decoder(source: Source | None, base: PolicyConfig | None, read: list[SourceFile]) -> DecoderConfig:
    if source is None or (base is not None and not source.has("config.json")):
        if base is None:
            expected = "one of them: no tensor tells the kind and the heads of a language model"
            remedy = "Pass --lm FOLDER, or --config with the name of a preset such as M-3B."
            raise ConfigError("import", got="neither --lm nor --config", expected=expected, remedy=remedy)
        return base.decoder
    (path,) = source.fetch([source.choose(["config.json"], what="language model")])
    read.append(_source_file("language model", path, source))
    decoder = decoder_config(path.parent, vocab_size=1, text_length=1)
    if base is not None and decoder.kind != base.decoder.kind:
        got = f"a language model of kind {decoder.kind}"
        remedy = "Give the language model of this preset, or leave --config out."
        raise ConfigError(f"--config {base.name}", got=got, expected=base.decoder.kind, remedy=remedy)
    return decoder


def _tokenizer(
    options: ImportOptions, language_model: Source | None, base: PolicyConfig | None, read: list[SourceFile]
) -> InstructionTokenizer:
    source = language_model if options.tokenizer is None else open_source(options.tokenizer, what="tokenizer")
    if source is None:
        remedy = "Pass --tokenizer FOLDER; EleutherAI/gpt-neox-20b is that of MPT and RedPajama."
        raise ConfigError("import", got="no tokenizer", expected="--tokenizer, or --lm whose folder has one", remedy=remedy)
    names = [name for name in TOKENIZER_FILES if source.has(name)]
    paths = source.fetch(names or [source.choose(["tokenizer.json"], what="tokenizer")])
    read += [_source_file("tokenizer", path, source) for path in paths]
    text_length = options.text_length or (base.decoder.text_length if base else 32)
    return flamingo_tokenizer(paths, text_length)


def _settle(plan: ImportPlan) -> None:
    """Decide what becomes of tensors that no file holds."""
    options, config = plan.options, plan.config
    initialised_parts = set()
    if options.roboflamingo is None:
        initialised_parts.add("head")
        if options.openflamingo is None:
            initialised_parts |= {"resampler", "cross-attention"}
    if config.resampler.per_camera:
        plan.weights.copy_missing_resampler()
    missing = plan.weights.missing
    plan.initialised = [name for name in missing if part_of(name) in initialised_parts]
    runs_norm = config.decoder.feature == "final_norm"
    plan.filled = {
        name: float(name.endswith("weight")) for name in missing if name.startswith(_FINAL_NORM) and not runs_norm
    }


def _describe(plan: ImportPlan) -> None:
    options, config = plan.options, plan.config
    if plan.filled:
        plan.assumed.append(
            f"the final norm is in no file: filled with ones, for with feature {config.decoder.feature} nothing runs it"
        )
    parts = Counter(part_of(name) for name in plan.initialised)
    if parts:
        without = "no vision-language pre-training; " if "resampler" in parts else ""
        plan.assumed.append(f"{without}sampled from seed {options.seed}: {', '.join(parts)}")
    for name in ("embedding.weight", "output_projection.weight"):
        if name in plan.weights.shapes and (rows := plan.weights.new_rows(name)) > 0:
            plan.assumed.append(f"{name}: {rows} rows of new tokens are sampled from seed {options.seed}")
    if options.vision_heads is None and options.config is None:
        size = config.vision.width // config.vision.heads
        plan.assumed.append(f"attention heads of {size} in CLIP's vision transformer: no tensor shows them")
    plan.assumed.append(
        f"fusion {config.fusion}, pooling {config.pooling}, window {config.window}, feature {config.decoder.feature}: "
        "no tensor shows them"
    )


def _remedy(name: str, config: PolicyConfig, options: ImportOptions) -> str:
    part = part_of(name)
    if part == "vision":
        return "Give CLIP's ViT-L/14: --clip openai/clip-vit-large-patch14."
    if part in ("resampler", "cross-attention") and options.openflamingo is None:
        return "Give the OpenFlamingo file: --openflamingo."
    if part in ("decoder", "embedding", "output projection"):
        upstream = [
            repository
            for preset_name, repository in UPSTREAM.items()
            if preset(preset_name).decoder.kind == config.decoder.kind and config.name in (preset_name, "imported")
        ]
        missing = "the final norm of " if name.startswith(_FINAL_NORM) else ""
        return f"Give {missing}the language model: --lm {' or '.join(upstream) or 'FOLDER'}."
    return "A file is incomplete; copy it again."


# The language model's name in a file name -> preset; a name that contains another stands before it.
_LANGUAGE_MODELS: Final = (
    ("mpt_dolly_3b", "M-3B-IFT"),
    ("mpt_3b", "M-3B"),
    ("mpt_base_4b", "G-4B"),
    ("mpt_4b", "G-4B-IFT"),
    ("mpt_9b", "M-9B"),
    ("llama_9b", "L-9B"),
)


def disagreements(name: str, config: PolicyConfig) -> list[str]:
    """Return where `name`, of a .pth file, says something else than `config`, each as half a sentence."""
    claims: list[tuple[str, object, object]] = []
    if match := re.search(r"_ws_(\d+)(?=[_.])", name):
        claims.append((match[0].strip("_"), int(match[1]), config.window))
    if match := re.search(r"_(post|pre|two_way|vit_concat)_hist", name):
        claims.append((match[1], match[1], config.fusion))
    if match := re.search(r"(?<=_)(\d+)_fur_step", name):
        claims.append((match[0], int(match[1]), config.chunk_size))
    if "_sep_" in name and not config.resampler.per_camera:
        claims.append(("sep", "a resampler for each camera", "one for both"))
    if "_tcp_" in name:
        claims.append(("tcp", "actions in the frame of the tool", "actions in the world's frame"))
    for part, preset_name in _LANGUAGE_MODELS:
        if f"_{part}_" in name:
            claims.append((part, preset_name, config.name))
            break
    return [f"{said!r} says {claimed}, the import {actual}" for said, claimed, actual in claims if claimed != actual]
