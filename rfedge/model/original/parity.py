"""Run a fixture of the original code through our policy and measure every stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rfedge.arrays import Array
from rfedge.jobs.progress import StageProgress
from rfedge.messages import POSE_SIZE
from rfedge.model.decoder import GatedCrossAttention, MediaMask, media_mask
from rfedge.model.head import LSTMHead
from rfedge.model.original.differences import Differences, ParityReport, StageDifference
from rfedge.model.original.fixture import ParityFixture, open_fixture
from rfedge.model.original.names import model_names
from rfedge.model.original.plan import load_original
from rfedge.model.policy import RoboFlamingo
from rfedge.model.vision import FramePreprocess
from rfedge.recurrence import Arrays, acting_row, advance, initial_state

# The original weighs the gripper's loss like this against the pose's.
GRIPPER_LOSS_WEIGHT: Final = 0.01

_Arrays = dict[str, Array]


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
    differences = Differences(fixture.arrays)
    mark = "/in/static_uint8" if fixture.has_head else "/in/lang_x"
    cases = [key.removesuffix(mark) for key in fixture.arrays if key.endswith(mark)]
    for done, case in enumerate(cases, 1):
        if not fixture.has_head:
            _interleaved(fixture, policy, projection, case, differences)
        elif case == "step":
            _step_by_step(fixture, policy, differences)
        else:
            _window(fixture, policy, case, differences)
        progress("cases", done, len(cases))
    if "generate/tokens" in fixture.arrays:
        _generation(fixture, policy, projection, differences)
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


@contextmanager
def _feature(policy: RoboFlamingo, feature: str) -> Iterator[None]:
    """Let the decoder return another of its states."""
    decoder = policy.backbone.decoder
    previous, decoder.feature = decoder.feature, feature  # type: ignore[assignment]
    try:
        yield
    finally:
        decoder.feature = previous


def _tensor(arrays: _Arrays, key: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(arrays[key]))


# ---- OpenFlamingo: interleaved images and text to logits


def _latents(policy: RoboFlamingo, vision_x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, images, frames, 3, size, size) -> patch tokens (all images, P, V), latents (N, images * R, V)."""
    num_texts, num_images = vision_x.shape[:2]
    tokens = policy.backbone.vision(vision_x.flatten(0, 2))
    latents = policy.backbone.resampler(tokens.reshape(num_texts * num_images, -1, tokens.shape[-1]))
    return tokens, latents.reshape(num_texts, -1, latents.shape[-1])


def _language(
    fixture: ParityFixture,
    policy: RoboFlamingo,
    ids: torch.Tensor,
    mask: torch.Tensor,
    latents: torch.Tensor,
    named: Any = None,
) -> torch.Tensor:
    """Return what the final norm makes of interleaved text (N, T, D); `named` overrides the count of `<image>` tokens."""
    num_latents = policy.config.resampler.latents
    if named is None:
        named = (ids == fixture.document["media_token_id"]).cumsum(dim=1)
    with _feature(policy, "final_norm"):
        return policy.backbone.decoder.tokens(
            policy.embed_text(ids),
            latents,
            key_mask_NT=mask.bool(),
            mask=media_mask(named, latents.shape[1] // num_latents, num_latents),
        )


@torch.no_grad()
def _interleaved(
    fixture: ParityFixture, policy: RoboFlamingo, projection: torch.Tensor, case: str, differences: Differences
) -> None:
    arrays = fixture.arrays
    ids, mask = _tensor(arrays, f"{case}/in/lang_x"), _tensor(arrays, f"{case}/in/attention_mask")
    named = None
    if (prompt := arrays.get(f"{case}/in/prompt_lang_x")) is not None:  # media were cached with another text
        total = (torch.from_numpy(prompt) == fixture.document["media_token_id"]).sum(dim=1, keepdim=True)
        named = total.expand(-1, ids.shape[1])
    with _recording(policy) as record:
        tokens, latents = _latents(policy, _tensor(arrays, f"{case}/in/vision_x"))
        hidden = _language(fixture, policy, ids, mask, latents, named)
    # What a query of padding on the left sees is up to the implementation: it may read nothing at all.
    where = mask.bool().numpy() if not mask[:, 0].all() else None
    computed = {name: values[0] for name, values in record.items()}
    computed |= {"vit/tokens": tokens, "perceiver/out": latents, "lm/logits": F.linear(hidden, projection)}
    inputs = [policy.embed_text(ids), *(computed[f"lm/layer{i}/out"] for i in range(policy.config.decoder.layers))]
    if (states := arrays.get(f"{case}/lm/hidden_states")) is not None:
        # MosaicGPT lists the inputs of its blocks; the others also what the final norm returns.
        listed = inputs[:-1] if len(states) == len(inputs) - 1 else [*inputs[:-1], hidden]
        computed["lm/hidden_states"] = torch.stack(listed)
    for name, values in computed.items():
        differences.add(case, name, values, where=where if name.startswith("lm/") else None)
    _language_loss(arrays, case, computed["lm/logits"], mask, differences)


def _language_loss(arrays: _Arrays, case: str, logits: torch.Tensor, mask: torch.Tensor, differences: Differences) -> None:
    if f"{case}/in/labels" not in arrays:
        return
    targets = _tensor(arrays, f"{case}/in/labels")[:, 1:]
    if bool(((mask[:, :-1] == 0) & (targets != -100)).any()):  # predicted from padding, which means nothing
        differences.compared.add(f"{case}/lm/loss")
        return
    differences.add(case, "lm/loss", F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten()))


@torch.no_grad()
def _generation(fixture: ParityFixture, policy: RoboFlamingo, projection: torch.Tensor, differences: Differences) -> None:
    """Feed the original's own continuation: then every step has the original's past, and greedy choice must agree."""
    arrays, settings = fixture.arrays, fixture.document["generate"]
    source = settings["input"].removesuffix("/in")
    ids = _tensor(arrays, "generate/tokens")
    prompt_mask = _tensor(arrays, f"{source}/in/attention_mask")
    num_steps = ids.shape[1] - prompt_mask.shape[1]
    mask = torch.cat([prompt_mask, torch.ones(len(ids), num_steps, dtype=prompt_mask.dtype)], dim=1)
    _, latents = _latents(policy, _tensor(arrays, f"{source}/in/vision_x"))
    logits = F.linear(_language(fixture, policy, ids, mask, latents), projection)[:, -num_steps - 1 : -1]
    differences.add("generate", "step_logits", logits)
    ended = (ids[:, -num_steps:] == settings["eos_token_id"]).cumsum(dim=1) > 0
    after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
    chosen = torch.where(after, settings["pad_token_id"], logits.argmax(dim=-1))
    differences.add("generate", "tokens", torch.cat([ids[:, :-num_steps], chosen], dim=1))


# ---- RoboFlamingo: windows of two cameras to actions


def _camera_mask(fixture: ParityFixture, ids: torch.Tensor, num_latents: int) -> MediaMask | None:
    """Return what each token of an instruction may read of the cameras; None where `<image>` is the first token."""
    named = (ids == fixture.document["media_token_id"]).cumsum(dim=1)
    return None if bool((named == 1).all()) else media_mask(named, 1, num_latents)


def _window(fixture: ParityFixture, policy: RoboFlamingo, case: str, differences: Differences) -> None:
    arrays, config = fixture.arrays, policy.config
    backbone, head = policy.backbone, policy.head
    assert isinstance(head, LSTMHead)  # the only head that fixtures have
    num_windows, num_frames = arrays[f"{case}/in/static_uint8"].shape[:2]
    preprocess = FramePreprocess(arrays[f"{case}/in/static_uint8"].shape[2], config.vision.image_size)
    for camera, name in (("static", "in/vision_x"), ("gripper", "in/vision_gripper")):
        bytes_ = _tensor(arrays, f"{case}/in/{camera}_uint8").flatten(0, 1)
        differences.add(case, name, preprocess(bytes_))
    images = torch.cat([_tensor(arrays, f"{case}/in/{name}").flatten(0, 2) for name in ("vision_x", "vision_gripper")])
    ids, mask = _tensor(arrays, f"{case}/in/lang_x"), _tensor(arrays, f"{case}/in/attention_mask").bool()
    everything = torch.ones_like(mask)  # the original pools over padding
    fusion = backbone.fusion
    backbone.fusion = "pre" if case.endswith("fusion_pre") else fusion
    policy.zero_grad()
    with torch.no_grad():
        tokens = backbone.vision(images)
        for call, part in enumerate(tokens.chunk(2)):
            differences.add(case, f"vit_tokens_call{call}", part)
    media = backbone.media(tokens)
    differences.add(case, "vis_x", media)
    read = _camera_mask(fixture, ids, media.shape[1])
    num_calls = 1 if backbone.fusion == "pre" else 2
    for call, part in enumerate(media.chunk(num_calls, dim=1)):
        differences.add(case, f"perceiver_call{call}", part)
    with torch.no_grad(), _feature(policy, "final_norm"), _recording(policy) as record:
        backbone.decoder.tokens(policy.embed_text(ids), media, key_mask_NT=mask, mask=read)
    for name, values in record.items():
        differences.add(case, name, values[0])

    def act(feature: str) -> tuple[torch.Tensor, ...]:
        with _feature(policy, feature):
            states = backbone.decoder.tokens(policy.embed_text(ids), media, key_mask_NT=mask, mask=read)
        features = backbone.decoder.pool(states, everything).unflatten(0, (num_windows, num_frames))
        hidden, (h, c) = head.rnn(features)
        pose, logit = head.unroll(features)
        return states, features, hidden, h, c, pose, torch.sigmoid(logit)

    names = ("head_in", "rnn_in", "rnn_out", "h_n", "c_n", "pose", "gripper")
    results = dict(zip(names, act(config.decoder.feature), strict=True))
    for name, value in results.items():
        differences.add(case, name, value)
    if f"{case}/loss" in arrays:
        _loss_and_gradients(fixture, policy, case, results["pose"], results["gripper"], differences)
    if case == "window":
        for alternative, feature in (("last_block", "last_block"), ("ln_f", "final_norm")):
            if f"alt_hidden/{alternative}/pose" in arrays:
                with torch.no_grad():
                    *_, pose, gripper = act(feature)
                differences.add(f"alt_hidden/{alternative}", "pose", pose)
                differences.add(f"alt_hidden/{alternative}", "gripper", gripper)
    backbone.fusion = fusion


def _loss_and_gradients(
    fixture: ParityFixture,
    policy: RoboFlamingo,
    case: str,
    pose: torch.Tensor,
    gripper: torch.Tensor,
    differences: Differences,
) -> None:
    labels = _tensor(fixture.arrays, f"{case}/in/labels").reshape(*pose.shape[:3], POSE_SIZE + 1)
    huber = F.huber_loss(pose, labels[..., :POSE_SIZE])
    crossed = F.binary_cross_entropy(gripper, torch.div(labels[..., POSE_SIZE] + 1.0, 2.0, rounding_mode="floor"))
    loss = huber + GRIPPER_LOSS_WEIGHT * crossed
    differences.add(case, "loss", torch.stack([loss, huber, crossed]))
    norms = fixture.document.get("grad_norms")
    if norms is None:
        return
    loss.backward()
    parameters = dict(policy.named_parameters())
    for original, name in model_names(norms, policy.config.decoder.kind).items():
        gradient = parameters[name].grad if name in parameters else None
        differences.add_gradient(original, None if gradient is None else float(gradient.norm()), norms[original])
    policy.zero_grad()


@torch.no_grad()
def _step_by_step(fixture: ParityFixture, policy: RoboFlamingo, differences: Differences) -> None:
    """Replay the evaluation, one frame a call, with the time-keeping that every backend here uses."""
    arrays, config = fixture.arrays, policy.config
    preprocess = FramePreprocess(arrays["step/in/static_uint8"].shape[1], config.vision.image_size)
    static, gripper = (preprocess(_tensor(arrays, f"step/in/{camera}_uint8")) for camera in ("static", "gripper"))
    num_calls = len(static)
    ids = _tensor(arrays, "step/in/lang_x").expand(num_calls, -1)
    mask = _tensor(arrays, "step/in/attention_mask").bool().expand(num_calls, -1)
    backbone = policy.backbone
    media = backbone.media(backbone.vision(torch.cat([static, gripper])))
    read = _camera_mask(fixture, ids, media.shape[1])
    states = backbone.decoder.tokens(policy.embed_text(ids), media, key_mask_NT=mask, mask=read)
    features = backbone.decoder.pool(states, torch.ones_like(mask)).numpy()
    record: dict[str, list[Any]] = {}

    def keep(name: str, value: Any) -> None:
        record.setdefault(name, []).append(value)

    def call(inputs: Arrays) -> Arrays:
        outputs = [part.numpy() for part in policy.head(**{name: torch.from_numpy(part) for name, part in inputs.items()})]
        return dict(zip(("pose", "gripper", "h_out", "c_out"), outputs, strict=True))

    state = initial_state(config)
    for feature in features:
        pose, probability, state = advance(config, call, feature[None], state)
        row = acting_row(state)
        keep("rnn_last_out", state.h[-1, row])
        keep("h_n", state.h[:, row])
        keep("c_n", state.c[:, row])
        keep("pose", pose)
        keep("gripper", probability)
        gripper_sign = np.where(probability > 0.5, 1.0, -1.0)
        keep("action_float16", np.concatenate([pose, gripper_sign[:, None]], axis=1).astype(np.float16))
        keep("hidden_state_kept_after", state.num_steps <= config.window)
    for name, values in record.items():
        ours = np.stack(values)
        theirs = arrays.get(f"step/{name}")
        stacked = name in ("pose", "gripper", "action_float16") and config.chunk_size > 1
        if stacked and theirs is not None and theirs.size * config.chunk_size == ours.size:
            ours = ours[:, 0]  # of stacked actions the original plays, and here recorded, the first
        differences.add("step", name, ours)
