"""Reads the numbers of a whole source before a picture is decoded, and lists all that is wrong with it at once.

Besides what keeps an episode from being mapped, the actions are compared with the state's own motion and the gripper with
the width of the fingers: units, signs, axes and rotation forms that are wrong do not crash, they train another policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rfedge.data.conversion.mapping import map_episode, source_motion, source_state
from rfedge.data.conversion.options import GRIPPER_CONVENTIONS, ROTATIONS, ConversionOptions
from rfedge.data.conversion.records import Layout, Source, SourceEpisode
from rfedge.data.frames import Float64Array
from rfedge.data.inspection.motion import GripSums, MotionFit, MotionSums, Tolerance
from rfedge.data.robot import BASE_M, from_base
from rfedge.errors import ConfigError, DatasetError, RfedgeError
from rfedge.robot.rotations import rotation_vectors, wrap_angle

_TOLERANCE = Tolerance()
_SHOWN = 8
# Another reading of the rotation has to leave this much less unexplained to be the right one.
_CLEARLY_BETTER = 3.0
# Targets further from the tool than this, in the middle of all frames, are poses of something else.
_FAR_M, _FAR_RAD = 0.1, 0.6


@dataclass(frozen=True, slots=True)
class Survey:
    """Survey of the numbers; `faults` is empty where the source can be converted."""

    faults: tuple[RfedgeError, ...]  # in the order of the source
    notes: tuple[str, ...]  # what could not be compared, and disagreements that the options allow
    factors: Mapping[str, float]  # group -> measured motion per commanded motion


def survey_source(source: Source, options: ConversionOptions, source_hz: float) -> Survey:
    """Map the numbers of every episode, without images, and compare actions with the measured state."""
    faults: list[RfedgeError] = []
    check = _Agreement(source.layout, options, source_hz)
    positions_m = [np.empty((0, 3))]
    for index in range(source.num_episodes):
        try:
            episode = source.read(index, images=False)
            positions_m.append(source_state(episode, options).pose[:, :3])
            map_episode(episode, source.layout, options, source_hz)
            check.add(episode)
        except DatasetError as error:  # noqa: PERF203 - every episode is looked at
            faults.append(error)
    faults = [*_wrong_frame(np.concatenate(positions_m)), *faults, *check.faults()]
    return Survey(tuple(faults), tuple(check.notes()), check.factors())


def _wrong_frame(positions_m: Float64Array) -> list[DatasetError]:
    """Return what offers the offset that brings positions counted from the arm's base to CALVIN's world."""
    if not len(positions_m) or not from_base(positions_m):
        return []
    middle, offset = np.median(positions_m, axis=0), ",".join(f"{value:g}" for value in BASE_M)
    got = f"({', '.join(f'{value:.2f}' for value in middle)}) m in their middle, out of the arm's reach"
    remedy = f"If they are counted from the arm's base, pass --tcp-offset-m {offset}: then they are in reach."
    return [DatasetError("tcp positions", got=got, expected="positions in CALVIN's world", remedy=remedy)]


def raise_all(subject: str, faults: Sequence[RfedgeError]) -> None:
    """Raise all of `faults` as one error; those that differ in numbers alone are counted."""
    kinds: dict[str, list[RfedgeError]] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"\d+", "#", str(fault)), []).append(fault)
    if not kinds:
        return
    more = [f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else "" for alike in kinds.values()]
    first = [alike[0] for alike in kinds.values()]
    kind = DatasetError if any(isinstance(fault, DatasetError) for fault in faults) else ConfigError
    if len(kinds) == 1:
        raise kind(first[0].subject, got=first[0].got, expected=first[0].expected, remedy=first[0].remedy + more[0])
    listed = [f"({number}) {fault}{rest}" for number, (fault, rest) in enumerate(zip(first, more, strict=True), 1)]
    rest = f" and {len(listed) - _SHOWN} kinds more" if len(listed) > _SHOWN else ""
    raise kind(subject, got=f"{len(listed)} faults", expected="none", remedy=" ".join(listed[:_SHOWN]) + rest)


class _Agreement:
    """Adds up commanded and measured motion, and gripper and width, over all episodes."""

    def __init__(self, layout: Layout, options: ConversionOptions, source_hz: float) -> None:
        self._layout = layout
        self._options = options
        self._rotation = options.rotation or layout.rotation
        # The same commands under every reading of their rotation: the one that explains the motion is the right one.
        readings = () if options.actions == "next-state" else ROTATIONS
        self._motion = {reading: MotionSums(source_hz) for reading in readings}
        self._grip = GripSums(source_hz)
        self._raw_grip = GripSums(source_hz)
        self._raw_values: set[float] = set()
        self._far: dict[str, list[tuple[float, float]]] = {reading: [] for reading in readings}

    def add(self, episode: SourceEpisode) -> None:
        state = source_state(episode, self._options)
        chosen = source_motion(episode, self._layout, self._options, state)
        raw = episode.values["actions"][:, -1]
        self._grip.add(chosen.gripper, state.width_m[:, 0])
        self._raw_grip.add(raw, state.width_m[:, 0])
        if len(self._raw_values) < 64:
            self._raw_values |= {float(value) for value in raw}
        measured = _differences(state.pose)
        for reading, sums in self._motion.items():
            motion = chosen
            if reading != self._rotation:
                motion = source_motion(episode, self._layout, replace(self._options, rotation=reading), state)
            if motion.steps is not None:
                sums.add(motion.steps[:-1], measured)
            elif motion.targets is not None:
                sums.add(_differences(motion.targets), measured)
                # In the middle of all frames, metres and rad of the targets from the poses measured then.
                off_m = np.linalg.norm(motion.targets[:, :3] - state.pose[:, :3], axis=1)
                turn = rotation_vectors(state.pose[:, 3:], motion.targets[:, 3:] - state.pose[:, 3:])
                self._far[reading].append((float(np.median(off_m)), float(np.median(np.linalg.norm(turn, axis=1)))))

    def faults(self) -> list[RfedgeError]:
        faults: list[RfedgeError] = []
        if "motion" not in self._options.allow_mismatch:
            faults += self._motion_faults()
        if "gripper" not in self._options.allow_mismatch and (fault := self._gripper_fault()) is not None:
            faults.append(fault)
        return faults

    def notes(self) -> list[str]:
        notes = []
        if "motion" in self._options.allow_mismatch:
            notes += [f"allowed: {fault}" for fault in self._motion_faults()]
        if "gripper" in self._options.allow_mismatch and (fault := self._gripper_fault()) is not None:
            notes.append(f"allowed: {fault}")
        chosen = self._motion.get(self._rotation)
        if chosen is not None and chosen.asked() and not chosen.moved():
            notes.append("the measured pose never moves, so the units of the actions were not compared with it")
        return notes

    def factors(self) -> dict[str, float]:
        """Return measured motion per commanded motion, of each group that moved."""
        chosen = self._motion.get(self._rotation)
        return {} if chosen is None else {fit.group: fit.factor for fit in chosen.fits()}

    def _motion_faults(self) -> list[RfedgeError]:
        chosen = self._motion.get(self._rotation)
        if chosen is None or not chosen.moved():
            return []
        faults: list[RfedgeError] = []
        for fit in chosen.fits():
            other = self._better_reading(fit) if fit.group == "rotation" else None
            if other is not None:
                faults.append(_other_reading(self._rotation, other, fit))
            elif (wrong := fit.disagreement(_TOLERANCE)) is not None:
                faults.append(self._factor_fault(fit, *wrong))
        return faults + self._far_faults()

    def _better_reading(self, chosen: MotionFit) -> MotionFit | None:
        for reading, sums in self._motion.items():
            for fit in sums.fits():
                is_other = reading != self._rotation and fit.group == chosen.group
                unexplained = 1.0 - fit.explained
                if is_other and fit.explained >= 0.8 and _CLEARLY_BETTER * unexplained < 1.0 - chosen.explained:
                    return fit
        return None

    def _factor_fault(self, fit: MotionFit, subject: str, factors: list[float], num_axes: int) -> DatasetError:
        unit, name = ("m", "position_scale_m") if fit.group == "translation" else ("rad", "rotation_scale_rad")
        stated = getattr(self._options, name) or getattr(self._layout, name)
        flag = f"--{name.replace('_', '-')}"
        got = f"{' and '.join(f'{factor:.3g}' for factor in factors)} times the commanded motion"
        is_one_unit = 0.0 < max(factors) <= 1.5 * min(factors)
        moved = sum(np.isfinite(factor) for factor in fit.axis_factors)
        if self._options.actions == "absolute":
            remedy = f"The poses in the actions are not in {unit} of the state's frame: map or convert them, "
        elif is_one_unit and num_axes in (0, moved):
            origin = "given" if getattr(self._options, name) is not None else f"default of {self._layout.name}"
            remedy = f"Pass {flag} {stated * fit.factor:.3g} instead of {stated:g} ({origin}), "
        elif is_one_unit:
            remedy = f"Only a part of the axes has the unit {stated:g} {unit} ({flag}): convert the actions first, "
        else:
            remedy = f"A sign or axis differs from the state's frame (unit {stated:g} {unit}, {flag}): map or convert it, "
        remedy += "take --actions next-state, or convert as it is with --allow-mismatch motion."
        return DatasetError(subject, got=got, expected="about 1", remedy=remedy)

    def _far_faults(self) -> list[RfedgeError]:
        chosen = self._far.get(self._rotation)
        if self._options.actions != "absolute" or not chosen:
            return []
        far_m, far_rad = (float(np.median([row[part] for row in chosen])) for part in range(2))
        faults: list[RfedgeError] = []
        if far_m > _FAR_M:
            remedy = "Another frame or point of the tool: convert the actions first, or take --actions next-state."
            got = f"{far_m:.3g} m from the tool"
            faults.append(DatasetError("positions in the actions", got=got, expected="near it", remedy=remedy))
        other = next(reading for reading in ROTATIONS if reading != self._rotation)
        other_rad = float(np.median([row[1] for row in self._far[other]]))
        if far_rad > _FAR_RAD:
            remedy = f"Read as {other} they are {other_rad:.2g} rad from it: pass --rotation {other}."
            if other_rad > 0.5 * far_rad:
                remedy = "Another frame or form of rotation: convert the actions first, or take --actions next-state."
            faults.append(
                DatasetError(
                    f"rotations in the actions, read as {self._rotation}",
                    got=f"{far_rad:.2g} rad from the tool's",
                    expected="near it",
                    remedy=remedy,
                )
            )
        return faults

    def _gripper_fault(self) -> DatasetError | None:
        fit = self._grip.fit()
        convention = self._options.gripper or self._layout.gripper
        overrule = "or convert as it is with --allow-mismatch gripper."
        if fit.is_inverted:
            low, high = GRIPPER_CONVENTIONS[convention]
            other = next(name for name, pair in GRIPPER_CONVENTIONS.items() if pair == (high, low))
            got = f"fingers that close when it opens (correlation {fit.correlation:.2f})"
            expected = "fingers that follow it"
            remedy = f"Pass --gripper-convention {other}, {overrule}"
            return DatasetError(f"gripper action, convention {convention}", got=got, expected=expected, remedy=remedy)
        if fit.never_crosses:
            values = f"{min(self._raw_values):g} to {max(self._raw_values):g}"
            got = f"{fit.command} in every frame (values {values}) while the fingers move {fit.moved_m:.3f} m"
            expected = "a command that crosses the convention's middle where they move"
            remedy = f"{self._crossing_remedy()} {overrule}"
            return DatasetError(f"gripper action, convention {convention}", got=got, expected=expected, remedy=remedy)
        return None

    def _crossing_remedy(self) -> str:
        raw = self._raw_grip.fit().correlation
        low, high = min(self._raw_values), max(self._raw_values)
        for name, (closed, opened) in GRIPPER_CONVENTIONS.items():
            middle, lowest, highest = 0.5 * (closed + opened), min(closed, opened), max(closed, opened)
            crosses = low < middle < high and lowest - 1e-3 <= low and high <= highest + 1e-3
            if crosses and (opened > closed) == (raw > 0.0) and np.isfinite(raw):
                return f"Pass --gripper-convention {name},"
        return "The last number of the actions may be another thing: map the gripper's command with --map actions=KEY,"


def _other_reading(chosen: str, other: MotionFit, fit: MotionFit) -> DatasetError:
    name = next(reading for reading in ROTATIONS if reading != chosen)
    got = f"{100 * fit.explained:.0f} % of the measured rotation explained"
    expected = f"most of it; read as {name} it is {100 * other.explained:.0f} %"
    remedy = f"Pass --rotation {name}, or convert as it is with --allow-mismatch motion."
    return DatasetError(f"rotations in the actions, read as {chosen}", got=got, expected=expected, remedy=remedy)


def _differences(poses: Float64Array) -> Float64Array:
    """Return (T - 1, 6) motion from each pose to the next, angles the shorter way round."""
    steps = np.diff(poses, axis=0)
    steps[:, 3:] = wrap_angle(steps[:, 3:])
    return np.asarray(steps)
