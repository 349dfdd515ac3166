"""Run a fixture of the original code through our policy and measure the differences of every stage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rfedge.arrays import Array
from rfedge.config import Feature
from rfedge.jobs.progress import StageProgress
from rfedge.messages import POSE_SIZE
from rfedge.model.decoder import GatedCrossAttention, MediaMask, media_mask
from rfedge.model.head import LSTMHead
from rfedge.model.original.fixture import ParityFixture, open_fixture
from rfedge.model.original.names import model_names
from rfedge.model.original.plan import WeightsReport, load_original
from rfedge.model.policy import RoboFlamingo
from rfedge.model.vision import FramePreprocess
from rfedge.recurrence import Arrays, acting_row, advance, initial_state

HIDDEN_TOLERANCE: Final = 2e-4
ACTION_TOLERANCE: Final = 5e-5
GRADIENT_TOLERANCE: Final = 1e-4  # relative
# Below this a gradient's norm is rounding, and no ratio of two of them says anything.
_SMALLEST_GRADIENT: Final = 1e-6

# First match names the stage of an array, and its tolerance.
_STAGES: Final = (
    (r"in/vision_.*", "images", HIDDEN_TOLERANCE),
    (r"vit.*", "vision transformer", HIDDEN_TOLERANCE),
    (r"perceiver/layer(\d+)/.*", r"resampler layer \1", HIDDEN_TOLERANCE),
    (r"perceiver.*|vis_x", "resampler", HIDDEN_TOLERANCE),
    (r"lm/layer(\d+)/xattn.*", r"cross-attention \1", HIDDEN_TOLERANCE),
    (r"lm/layer(\d+)/out", r"decoder layer \1", HIDDEN_TOLERANCE),
    (r"lm/final_norm", "final norm", HIDDEN_TOLERANCE),
    (r"lm/hidden_states", "hidden states", HIDDEN_TOLERANCE),
    (r"lm/logits|step_logits", "logits", HIDDEN_TOLERANCE),
    (r"lm/loss", "language loss", HIDDEN_TOLERANCE),
    (r"tokens", "generated tokens", 0.0),
    (r"head_in", "feature tokens", HIDDEN_TOLERANCE),
    (r"rnn_in", "pooled feature", HIDDEN_TOLERANCE),
    (r"rnn_out|rnn_last_out|h_n|c_n", "LSTM", HIDDEN_TOLERANCE),
    (r"pose", "pose", ACTION_TOLERANCE),
    (r"gripper", "gripper", ACTION_TOLERANCE),
    (r"action_float16", "executed action", 2.0**-10),  # one step of float16 below 1: a tie may round either way
    (r"loss", "loss", ACTION_TOLERANCE),
    (r"hidden_state_kept_after", "time-keeping", 0.0),
)


@dataclass(slots=True)
class StageDifference:
    """The worst difference of a stage over all its arrays; `relative` ones are divided by the original's value."""

    stage: str
    tolerance: float
    relative: bool = False
    worst: float = 0.0
    worst_array: str = ""
    num_arrays: int = 0

    @property
    def passed(self) -> bool:
        """Whether the worst difference is within the tolerance; it is infinite for a NaN or another size."""
        return self.worst <= self.tolerance


@dataclass(slots=True)
class ParityReport:
    fixture: str
    weights: WeightsReport
    stages: list[StageDifference]  # in the order of the forward pass
    not_compared: list[str]  # arrays of the fixture for which nothing is computed here

    @property
    def passed(self) -> bool:
        """Whether every stage is within its tolerance and every tensor found its place."""
        complete = not self.weights.missing and not self.weights.left_over
        return complete and bool(self.stages) and all(stage.passed for stage in self.stages)


@dataclass(slots=True)
class Differences:
    """Compares arrays with those of a fixture and remembers which were compared."""

    expected: dict[str, Array]
    stages: dict[str, StageDifference] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)

    def add(self, case: str, name: str, ours: torch.Tensor | Array, *, where: Any = None) -> None:
        """Compare with `case/name`, where the fixture has it; only the shape of `ours` may differ.

        Without `where`, bool (N, T), all tokens count.
        """
        key = f"{case}/{name}"
        if key not in self.expected:
            return
        theirs = self.expected[key]
        actual = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
        if actual.size != theirs.size:
            difference = float("inf")
        else:
            left, right = actual.reshape(theirs.shape).astype(np.float64), theirs.astype(np.float64)
            if where is not None:
                left, right = (x[:, where] if x.ndim == 4 else x[where] for x in (left, right))
            difference = float(np.abs(left - right).max(initial=0.0))
            difference = float("inf") if np.isnan(difference) else difference
        for pattern, stage, tolerance in _STAGES:
            if match := re.fullmatch(pattern, name):
                prefix = "step: " if case == "step" else ""
                self._keep(prefix + match.expand(stage), tolerance, key, difference)
                self.compared.add(key)
                return

    def add_gradient(self, name: str, ours: float | None, theirs: float | None) -> None:
        """Compare the norm of one gradient; None stands for a tensor that nothing reaches."""
        actual, expected = ours or 0.0, theirs or 0.0
        relative = abs(actual - expected) / max(abs(expected), _SMALLEST_GRADIENT)
        self._keep("gradient norms", GRADIENT_TOLERANCE, name, relative, relative=True)

    def _keep(self, stage: str, tolerance: float, key: str, difference: float, *, relative: bool = False) -> None:
        row = self.stages.setdefault(stage, StageDifference(stage, tolerance, relative))
        row.num_arrays += 1
        if difference > row.worst or not row.worst_array:
            row.worst, row.worst_array = difference, key


# The original weighs the gripper's loss like this against the pose's.
GRIPPER_LOSS_WEIGHT: Final = 0.01


def run_parity(folder: Path, *, progress: StageProgress = lambda *_: None) -> ParityReport:
    """Load a fixture's weights, run its inputs, compare every array; ArtifactError where a file cannot be read."""
    fixture = open_fixture(folder)
    with torch.random.fork_rng(devices=[]):
        policy = RoboFlamingo(fixture.policy).eval()
    report, projection = load_original(policy, fixture.weights, without=() if fixture.has_head else ("head.",))
    stages, not_compared = compare(fixture, policy, projection, progress=progress)
    return ParityReport(fixture.policy.name, report, stages, not_compared)


def compare(
    fixture: ParityFixture, policy: RoboFlamingo, projection: torch.Tensor, *, progress: StageProgress = lambda *_: None
) -> tuple[list[StageDifference], list[str]]:
    """Return the differences by stage, and the names of the arrays that nothing here computes."""
    comparison = _Comparison(fixture, policy, projection)
    mark = "/in/static_uint8" if fixture.has_head else "/in/lang_x"
    cases = [key.removesuffix(mark) for key in fixture.arrays if key.endswith(mark)]
    for done, case in enumerate(cases, 1):
        if not fixture.has_head:
            comparison.interleaved(case)
        elif case == "step":
            comparison.step_by_step()
        else:
            comparison.window(case)
        progress("cases", done, len(cases))
    if "generate/tokens" in fixture.arrays:
        comparison.generation()
    differences = comparison.differences
    unseen = [name for name in fixture.arrays if "/in/" not in name and name not in differences.compared]
    return list(differences.stages.values()), [name for name in unseen if not name.startswith("negative/")]


@contextmanager
def _recording(policy: RoboFlamingo) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect what the parts return, under the fixture's names; a part that runs twice has two entries."""
    backbone = policy.backbone
    parts: list[tuple[str, nn.Module]] = [("vit/conv1", backbone.vision.conv1), ("vit/ln_pre", backbone.vision.ln_pre)]
    parts += [(f"vit/block{index}", block) for index, block in enumerate(backbone.vision.blocks)]
    for index, layer in enumerate(backbone.resampler.layers):
        parts += [(f"perceiver/layer{index}/attn", layer.attention), (f"perceiver/layer{index}/ff", layer.feed_forward)]  # type: ignore[list-item]
    for index, layer in enumerate(backbone.decoder.layers):
        fused = layer.cross_attention
        if isinstance(fused, GatedCrossAttention):
            parts += [
                (f"lm/layer{index}/xattn_attn_raw", fused.attention),
                (f"lm/layer{index}/xattn_ff_raw", fused.feed_forward),
                (f"lm/layer{index}/xattn_out", fused),
            ]
        parts.append((f"lm/layer{index}/out", layer))
    parts.append(("lm/final_norm", backbone.decoder.ln_f))
    record: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: record.setdefault(name, []).append(output.detach())

    handles = [part.register_forward_hook(hook(name)) for name, part in parts]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


class _Comparison:
    def __init__(self, fixture: ParityFixture, policy: RoboFlamingo, projection: torch.Tensor) -> None:
        self.arrays, self.document, self.config = fixture.arrays, fixture.document, policy.config
        self.policy, self.backbone, self.projection = policy, policy.backbone, projection
        self.differences = Differences(fixture.arrays)

    def _tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.arrays[key]))

    def _images_named(self, ids: torch.Tensor) -> torch.Tensor:
        """Return how many `<image>` tokens stand up to and including each token."""
        named: torch.Tensor = (ids == self.document["media_token_id"]).cumsum(dim=1)
        return named

    # ---- OpenFlamingo: interleaved images and text to logits

    def _latents(self, vision_x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, images, frames, 3, size, size) -> patch tokens (all images, P, V), latents (N, images * R, V)."""
        num_texts, num_images = vision_x.shape[:2]
        tokens = self.backbone.vision(vision_x.flatten(0, 2))
        latents = self.backbone.resampler(tokens.reshape(num_texts * num_images, -1, tokens.shape[-1]))
        return tokens, latents.reshape(num_texts, -1, latents.shape[-1])

    def _language(
        self, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor, named: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the final norm makes of text and images, (N, T, D); `named` replaces the count of `<image>` tokens."""
        num_latents = self.config.resampler.latents
        named = self._images_named(ids) if named is None else named
        read = media_mask(named, latents.shape[1] // num_latents, num_latents)
        text = self.policy.embed_text(ids)
        return self.backbone.decoder.tokens(text, latents, key_mask_NT=mask.bool(), mask=read, feature="final_norm")

    @torch.no_grad()
    def interleaved(self, case: str) -> None:
        arrays = self.arrays
        ids, mask = self._tensor(f"{case}/in/lang_x"), self._tensor(f"{case}/in/attention_mask")
        named = None
        if (prompt := arrays.get(f"{case}/in/prompt_lang_x")) is not None:  # media were cached with another text
            named = self._images_named(torch.from_numpy(prompt))[:, -1:].expand(-1, ids.shape[1])
        with _recording(self.policy) as record:
            tokens, latents = self._latents(self._tensor(f"{case}/in/vision_x"))
            hidden = self._language(ids, mask, latents, named)
        # What a query of padding on the left sees is up to the implementation: it may read nothing at all.
        where = mask.bool().numpy() if not mask[:, 0].all() else None
        computed = {name: values[0] for name, values in record.items()}
        computed |= {"vit/tokens": tokens, "perceiver/out": latents, "lm/logits": F.linear(hidden, self.projection)}
        if (states := arrays.get(f"{case}/lm/hidden_states")) is not None:
            blocks = [computed[f"lm/layer{index}/out"] for index in range(self.config.decoder.layers)]
            inputs = [self.policy.embed_text(ids), *blocks[:-1]]
            # MosaicGPT lists the inputs of its blocks; the others also what the final norm returns.
            computed["lm/hidden_states"] = torch.stack(inputs if len(states) == len(inputs) else [*inputs, hidden])
        for name, values in computed.items():
            self.differences.add(case, name, values, where=where if name.startswith("lm/") else None)
        if f"{case}/in/labels" in arrays:
            targets = self._tensor(f"{case}/in/labels")[:, 1:]
            if bool(((mask[:, :-1] == 0) & (targets != -100)).any()):  # predicted from padding, which means nothing
                self.differences.compared.add(f"{case}/lm/loss")
            else:
                loss = F.cross_entropy(computed["lm/logits"][:, :-1].flatten(0, 1), targets.flatten())
                self.differences.add(case, "lm/loss", loss)

    @torch.no_grad()
    def generation(self) -> None:
        """Feed the original's own continuation: then every step has the original's past, and greedy choice must agree."""
        settings = self.document["generate"]
        source = settings["input"].removesuffix("/in")
        ids, prompt_mask = self._tensor("generate/tokens"), self._tensor(f"{source}/in/attention_mask")
        num_steps = ids.shape[1] - prompt_mask.shape[1]
        mask = torch.cat([prompt_mask, torch.ones(len(ids), num_steps, dtype=prompt_mask.dtype)], dim=1)
        _, latents = self._latents(self._tensor(f"{source}/in/vision_x"))
        logits = F.linear(self._language(ids, mask, latents), self.projection)[:, -num_steps - 1 : -1]
        self.differences.add("generate", "step_logits", logits)
        ended = (ids[:, -num_steps:] == settings["eos_token_id"]).cumsum(dim=1) > 0
        after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
        chosen = torch.where(after, settings["pad_token_id"], logits.argmax(dim=-1))
        self.differences.add("generate", "tokens", torch.cat([ids[:, :-num_steps], chosen], dim=1))

    # ---- RoboFlamingo: windows of two cameras to actions

    def _camera_mask(self, ids: torch.Tensor, num_latents: int) -> MediaMask | None:
        """Return what each token of an instruction may read of the cameras; None where `<image>` is the first token."""
        named = self._images_named(ids)
        return None if bool((named == 1).all()) else media_mask(named, 1, num_latents)

    def _preprocess(self, key: str) -> torch.Tensor:
        frames = self._tensor(key).flatten(0, -4)
        return FramePreprocess(frames.shape[1], self.config.vision.image_size)(frames)  # type: ignore[no-any-return]

    def window(self, case: str) -> None:
        arrays, config, backbone, head = self.arrays, self.config, self.backbone, self.policy.head
        assert isinstance(head, LSTMHead)  # the only head that fixtures have
        for camera, name in (("static", "in/vision_x"), ("gripper", "in/vision_gripper")):
            self.differences.add(case, name, self._preprocess(f"{case}/in/{camera}_uint8"))
        images = torch.cat([self._tensor(f"{case}/in/{name}").flatten(0, 2) for name in ("vision_x", "vision_gripper")])
        ids, mask = self._tensor(f"{case}/in/lang_x"), self._tensor(f"{case}/in/attention_mask").bool()
        fusion = backbone.fusion
        backbone.fusion = "pre" if case.endswith("fusion_pre") else fusion
        self.policy.zero_grad()
        with torch.no_grad():
            tokens = backbone.vision(images)
            for call, part in enumerate(tokens.chunk(2)):
                self.differences.add(case, f"vit_tokens_call{call}", part)
        media = backbone.media(tokens)
        self.differences.add(case, "vis_x", media)
        for call, part in enumerate(media.chunk(1 if backbone.fusion == "pre" else 2, dim=1)):
            self.differences.add(case, f"perceiver_call{call}", part)
        read = self._camera_mask(ids, media.shape[1])

        def states_of(feature: Feature) -> torch.Tensor:
            text = self.policy.embed_text(ids)
            return backbone.decoder.tokens(text, media, key_mask_NT=mask, mask=read, feature=feature)

        with torch.no_grad(), _recording(self.policy) as record:
            states_of("final_norm")
        for name, values in record.items():
            self.differences.add(case, name, values[0])

        def act(feature: Feature) -> tuple[torch.Tensor, ...]:
            states = states_of(feature)
            # the original pools over padding
            features = backbone.decoder.pool(states, torch.ones_like(mask))
            features = features.unflatten(0, arrays[f"{case}/in/static_uint8"].shape[:2])
            hidden, (h, c) = head.rnn(features)
            pose, logit = head.unroll(features)
            return states, features, hidden, h, c, pose, torch.sigmoid(logit)

        names = ("head_in", "rnn_in", "rnn_out", "h_n", "c_n", "pose", "gripper")
        results = dict(zip(names, act(config.decoder.feature), strict=True))
        for name, value in results.items():
            self.differences.add(case, name, value)
        if f"{case}/loss" in arrays:
            self._loss_and_gradients(case, results["pose"], results["gripper"])
        alternatives: dict[str, Feature] = {"last_block": "last_block", "ln_f": "final_norm"}
        for alternative, feature in alternatives.items():
            if case == "window" and f"alt_hidden/{alternative}/pose" in arrays:
                with torch.no_grad():
                    *_, pose, gripper = act(feature)
                self.differences.add(f"alt_hidden/{alternative}", "pose", pose)
                self.differences.add(f"alt_hidden/{alternative}", "gripper", gripper)
        backbone.fusion = fusion

    def _loss_and_gradients(self, case: str, pose: torch.Tensor, gripper: torch.Tensor) -> None:
        labels = self._tensor(f"{case}/in/labels").reshape(*pose.shape[:3], POSE_SIZE + 1)
        huber = F.huber_loss(pose, labels[..., :POSE_SIZE])
        crossed = F.binary_cross_entropy(gripper, torch.div(labels[..., POSE_SIZE] + 1.0, 2.0, rounding_mode="floor"))
        loss = huber + GRIPPER_LOSS_WEIGHT * crossed
        self.differences.add(case, "loss", torch.stack([loss, huber, crossed]))
        norms = self.document.get("grad_norms")
        if norms is None:
            return
        loss.backward()
        parameters = dict(self.policy.named_parameters())
        for original, name in model_names(norms, self.config.decoder.kind).items():
            gradient = parameters[name].grad if name in parameters else None
            self.differences.add_gradient(original, None if gradient is None else float(gradient.norm()), norms[original])
        self.policy.zero_grad()

    @torch.no_grad()
    def step_by_step(self) -> None:
        """Replay the evaluation, one frame a call, with the time-keeping that every backend here uses."""
        config, backbone = self.config, self.backbone
        static, gripper = (self._preprocess(f"step/in/{camera}_uint8") for camera in ("static", "gripper"))
        ids = self._tensor("step/in/lang_x").expand(len(static), -1)
        mask = self._tensor("step/in/attention_mask").bool().expand(len(static), -1)
        media = backbone.media(backbone.vision(torch.cat([static, gripper])))
        read = self._camera_mask(ids, media.shape[1])
        states = backbone.decoder.tokens(self.policy.embed_text(ids), media, key_mask_NT=mask, mask=read)
        features = backbone.decoder.pool(states, torch.ones_like(mask)).numpy()
        record: dict[str, list[Any]] = defaultdict(list)

        def call(inputs: Arrays) -> Arrays:
            outputs = self.policy.head(**{name: torch.from_numpy(part) for name, part in inputs.items()})
            return dict(zip(("pose", "gripper", "h_out", "c_out"), [part.numpy() for part in outputs], strict=True))

        state = initial_state(config)
        for feature in features:
            pose, probability, state = advance(config, call, feature[None], state)
            row = acting_row(state)
            gripper_sign = np.where(probability > 0.5, 1.0, -1.0)
            record["rnn_last_out"].append(state.h[-1, row])
            record["h_n"].append(state.h[:, row])
            record["c_n"].append(state.c[:, row])
            record["pose"].append(pose)
            record["gripper"].append(probability)
            record["action_float16"].append(np.concatenate([pose, gripper_sign[:, None]], axis=1).astype(np.float16))
            record["hidden_state_kept_after"].append(state.num_steps <= config.window)
        for name, values in record.items():
            ours, theirs = np.stack(values), self.arrays.get(f"step/{name}")
            stacked = name in ("pose", "gripper", "action_float16") and config.chunk_size > 1
            if stacked and theirs is not None and theirs.size * config.chunk_size == ours.size:
                ours = ours[:, 0]  # of stacked actions the original plays, and here recorded, the first
            self.differences.add("step", name, ours)
