"""Motion in rendered videos: smooth paths of the camera and of solids that move rigidly.

A path is a sum of two slow sine waves per axis, so that it is smooth, stays within its amplitude, and has no end. All
paths are computed for `MOST_FRAMES` frames, so that a short video is the beginning of a longer one.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_range
from geomtx.data.synthetic.rooms import CAMERA_MARGIN, Dice, look_at, turn_about
from geomtx.data.synthetic.solids import Solids, Textures, clearance
from geomtx.geometry.camera import invert_rigid

__all__ = ["MOST_FRAMES", "MotionStyle", "carry_solids", "carry_textures", "move_camera", "move_solids"]

MOST_FRAMES = 64

_SWAYS = (1.0, 1.0, 1.0, 0.5, 0.0)  # relative amplitudes of the candidate paths of the camera; the last stands still
_FREE = 0.3  # smallest distance between the camera and a solid, in metres


@dataclasses.dataclass(frozen=True)
class MotionStyle:
    """Shares and ranges (least, most) from which the motions of a video are drawn uniformly.

    Attributes:
        moving: Share of the solids that move, in 0 … 1; those that would come too close to the camera stand still.
            Defaults to 0.6.
        flying: Share of the moving solids that leave the floor and rotate about any axis, in 0 … 1; the others move
            horizontally and rotate about the vertical. Defaults to 0.5.
        travel: Amplitude of a solid's path in metres; defaults to (0.2, 1).
        turn: Amplitude of its rotation in degrees; defaults to (20, 150).
        period: Period of all oscillations in frames, at least 4; defaults to (20, 60).
        sway: Amplitude of the camera's path in metres, less where it has no room; defaults to (0.1, 0.6).
        aim: Amplitude of the point that the camera looks at, relative to its distance; defaults to 0.12.
        roll: Amplitude of the camera's rotation about its optical axis in degrees; defaults to 4.

    Raises:
        ValueError: If a number is out of range.
    """

    moving: float = 0.6
    flying: float = 0.5
    travel: tuple[float, float] = (0.2, 1.0)
    turn: tuple[float, float] = (20.0, 150.0)
    period: tuple[float, float] = (20.0, 60.0)
    sway: tuple[float, float] = (0.1, 0.6)
    aim: float = 0.12
    roll: float = 4.0

    @classmethod
    def still(cls) -> MotionStyle:
        """Return the style in which neither camera nor solids move."""
        return cls(moving=0.0, sway=(0.0, 0.0), aim=0.0, roll=0.0)

    def __post_init__(self) -> None:
        for name in ("moving", "flying"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("travel", "turn", "period", "sway"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf:
                raise ValueError(f"{name} must be (least, most), neither negative, got {value}")
        if self.period[0] < 4:
            raise ValueError(f"period must be at least 4 frames, for neighbours to be near, got {self.period}")
        for name in ("aim", "roll"):
            check_at_least(name, getattr(self, name), 0)


def move_camera(dice: Dice, solids: Solids, cam_from_world: Tensor, style: MotionStyle) -> Tensor:
    """Draw smooth paths of cameras.

    Args:
        dice: Random numbers of B scenes.
        solids: Solids at rest; of a few random paths, the first that keeps its distance from them is taken.
        cam_from_world: Poses of the cameras without motion, (B, 3, 4).
        style: Ranges of the motion.

    Returns:
        `cam_from_world` of all frames, (B, MOST_FRAMES, 3, 4).
    """
    eye, forward = invert_rigid(cam_from_world)[..., 3], cam_from_world[:, 2, :3]
    size = solids.room_high - solids.room_low
    distance = 0.5 * torch.minimum(size[:, 0], size[:, 2])[:, None]
    pivot = (eye + distance * forward)[:, None]
    count = len(_SWAYS)
    # Far less than the distance, so that the camera never reaches the point that it looks at.
    reach = torch.minimum(dice.between(*style.sway, 1), 0.25 * distance)[..., None]
    reach = reach * dice.between(0.3, 1.0, count, 3) * torch.tensor(_SWAYS).to(eye)[:, None]
    low, high = (solids.room_low + CAMERA_MARGIN)[:, None], (solids.room_high - CAMERA_MARGIN)[:, None]
    eyes = _paths(eye[:, None], reach, low, high, _swing(dice, style, count, 3))
    room = clearance(solids, eyes.flatten(1, 2)).unflatten(1, eyes.shape[1:3]).amin(1)
    rank = torch.where(room > _FREE, 1e3 - torch.arange(count, device=room.device), room)
    chosen = rank.argmax(dim=-1)[:, None, None, None].expand(-1, MOST_FRAMES, 1, 3)
    eyes = eyes.gather(2, chosen)[:, :, 0]
    targets = pivot + style.aim * distance[:, None] * _swing(dice, style, 3)
    rolls = style.roll * math.pi / 180 * _swing(dice, style)
    rest = cam_from_world[:, None, :, :3]
    upright = look_at(eye, pivot[:, 0], torch.zeros_like(eye[:, 0]))[:, None, :, :3]
    rotation = turn_about(rolls, 2) @ rest @ upright.mT @ look_at(eyes, targets, torch.zeros_like(rolls))[..., :3]
    return torch.cat([rotation, -(rotation @ eyes[..., None])], dim=-1)


def move_solids(dice: Dice, solids: Solids, eyes: Tensor, style: MotionStyle) -> tuple[Solids, Tensor]:
    """Draw smooth rigid motions of some of the solids, inside of the room and at a distance from the camera.

    Args:
        dice: Random numbers of B scenes.
        solids: Solids at rest.
        eyes: Positions of the camera, (B, MOST_FRAMES, 3).
        style: Ranges of the motion.

    Returns:
        The solids at rest, of which the moving ones are shrunk to what can move in the room, and the motions
        `world_from_rest` (B, MOST_FRAMES, K, 3, 4), the identity for solids that stand still.
    """
    count = solids.exists.shape[1]
    moves, flies = dice.roll(count) < style.moving, dice.roll(count) < style.flying
    half = (solids.room_high - solids.room_low) / 2
    ground = torch.minimum(half[:, 0], half[:, 2])[:, None]
    space = 0.7 * torch.where(flies, torch.minimum(ground, half[:, 1:2]), ground)
    scale = (space / solids.reach).clamp(max=1)
    shrunk = _shrink(solids, scale)
    travel = dice.between(*style.travel, count, 1) * dice.between(0.3, 1.0, count, 3)
    low, high = (
        solids.room_low[:, None] + shrunk.reach[..., None],
        solids.room_high[:, None] - shrunk.reach[..., None],
    )
    level = shrunk.centers[..., 1:2]
    upright = torch.tensor([False, True, False], device=flies.device) & ~flies[..., None]
    low, high = torch.where(upright, level, low), torch.where(upright, level, high)
    centers = _paths(shrunk.centers, travel, low, high, _swing(dice, style, count, 3))
    angle = dice.between(*style.turn, count)[:, None] * (math.pi / 180) * _swing(dice, style, count)
    tilt = dice.between(0, math.pi, count) * flies
    axis = (turn_about(dice.between(0, 2 * math.pi, count), 1) @ turn_about(tilt, 0))[:, None]
    rotation = axis @ turn_about(angle, 1) @ axis.mT
    gap = (centers - eyes[:, :, None]).norm(dim=-1) - shrunk.reach[:, None]
    moves = moves & (gap.amin(1) > CAMERA_MARGIN)
    solids = _shrink(solids, torch.where(moves, scale, 1.0))
    world_from_rest = torch.cat([rotation, centers[..., None] - rotation @ shrunk.centers[:, None, :, :, None]], dim=-1)
    identity = torch.eye(3, 4).to(world_from_rest)
    return solids, torch.where(moves[:, None, :, None, None], world_from_rest, identity)


def carry_solids(solids: Solids, world_from_rest: Tensor) -> Solids:
    """Move solids of B scenes by motions (B, S, K, 3, 4); returns B·S scenes, one per frame."""
    rotation, shift = world_from_rest[..., :3], world_from_rest[..., 3]
    normals = solids.normals[:, None] @ rotation.mT
    offsets = solids.offsets[:, None] + (normals @ shift[..., None])[..., 0]
    centers = (rotation @ solids.centers[:, None, :, :, None])[..., 0] + shift
    num_frames = world_from_rest.shape[1]
    still = (t.repeat_interleave(num_frames, dim=0) for t in solids[4:])
    moved = (rotation @ solids.quadrics[:, None] @ rotation.mT, centers, normals, offsets)
    return Solids(*(t.flatten(0, 1) for t in moved), *still)


def carry_textures(textures: Textures, world_from_rest: Tensor) -> Textures:
    """Move textures of B scenes with their surfaces by motions (B, S, U, 3, 4); returns B·S scenes, one per frame.

    A wave w·x + φ at the point before the motion, Rᵀ(x - t), is the wave (R w)·x + φ - (R w)·t.
    """
    rotation, shift = world_from_rest[..., :3], world_from_rest[..., 3]
    waves = textures.waves[:, None] @ rotation.mT
    phases = textures.phases[:, None] - (waves @ shift[..., None])[..., 0]
    still = (t.repeat_interleave(world_from_rest.shape[1], dim=0) for t in textures[2:])
    return Textures(waves.flatten(0, 1), phases.flatten(0, 1), *still)


def _swing(dice: Dice, style: MotionStyle, *shape: int) -> Tensor:
    """Draw smooth oscillations over the frames, (B, MOST_FRAMES, *shape) in [-1, 1]."""
    period, phase, detail = dice.between(*style.period, *shape), dice.roll(*shape), dice.roll(*shape)
    frames = torch.arange(MOST_FRAMES, device=period.device, dtype=period.dtype)
    turns = frames.view(1, -1, *(1 for _ in shape)) / period[:, None]
    slow, fast = turns + phase[:, None], 2.3 * turns + detail[:, None]
    return 0.8 * (2 * math.pi * slow).sin() + 0.2 * (2 * math.pi * fast).sin()


def _paths(start: Tensor, reach: Tensor, low: Tensor, high: Tensor, swing: Tensor) -> Tensor:
    """Return paths (B, T, K, 3) with amplitude `reach` about `start` (B, K, 3), moved and shrunk to fit into a box."""
    reach = torch.minimum(reach, (high - low) / 2)
    middle = torch.minimum(torch.maximum(start, low + reach), high - reach)
    return middle[:, None] + reach[:, None] * swing


def _shrink(solids: Solids, scale: Tensor) -> Solids:
    """Scale solids by factors (B, K) about the points of the floor below their centres."""
    foot = solids.centers * torch.tensor([1, 0, 1]).to(solids.centers)
    at_foot = (solids.normals @ foot[..., None])[..., 0]
    return solids._replace(
        quadrics=solids.quadrics / scale[..., None, None].square(),
        centers=foot + scale[..., None] * (solids.centers - foot),
        offsets=at_foot + scale[..., None] * (solids.offsets - at_foot),
        reach=scale * solids.reach,
    )
