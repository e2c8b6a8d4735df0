"""What kind of rooms are rendered: the ranges of all their numbers."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["CAMERA_MARGIN", "RoomStyle"]

CAMERA_MARGIN = 0.25
"""Metres of a camera from the room's sides."""


@dataclasses.dataclass(frozen=True)
class RoomStyle:
    """Ranges that a scene's numbers are drawn from, uniformly; lengths in metres, angles in degrees.

    Attributes:
        half_width: Of the room, along x and along z.
        height: Of the room.
        num_solids: Least and most.
        solid_radius: Half the size of a solid.
        fov: The wider field of view of the pictures; all cameras of a scene share it.
        spread: How far the cameras circle what they look at, to each side of the first.
        dolly: Distances of the cameras from what they look at, relative to the first one's.
        level: Heights of the cameras, relative to the room's.
        aim: How far beside the common point a camera may look, along each axis, relative to its distance.
        roll: Largest rotation of a camera about its axis.
        wild: Share of rooms whose walls, floor and ceiling look like anything; the others have pale walls, a bright
            ceiling and a darker floor, as rooms do, which is what tells a single picture's depth.
        shadows: Whether solids throw shadows, which costs a second ray a pixel.
    """

    half_width: tuple[float, float] = (1.8, 4.5)
    height: tuple[float, float] = (2.2, 3.6)
    num_solids: tuple[int, int] = (3, 10)
    solid_radius: tuple[float, float] = (0.15, 0.7)
    fov: tuple[float, float] = (45.0, 85.0)
    spread: tuple[float, float] = (8.0, 60.0)
    dolly: tuple[float, float] = (0.7, 1.3)
    level: tuple[float, float] = (0.3, 0.75)
    aim: float = 0.12
    roll: float = 6.0
    wild: float = 0.3
    shadows: bool = True

    @classmethod
    def nano(cls) -> RoomStyle:
        """The rooms that the weights which ship with geomtx are trained on: few things, orderly cameras, no shadows."""
        return cls(
            half_width=(2.5, 3.5),
            height=(2.6, 3.0),
            num_solids=(2, 4),
            solid_radius=(0.4, 0.7),
            fov=(62.0, 68.0),
            spread=(60.0, 60.0),
            dolly=(0.85, 1.15),
            level=(0.5, 0.55),
            aim=0.03,
            roll=1.0,
            wild=0.0,
            shadows=False,
        )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, tuple(value))
                if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                    raise ValueError(f"{field.name} must be (least, most), both positive, got {value}")
        if self.num_solids[1] > 16:
            raise ValueError(f"num_solids must be in 1 … 16, got {self.num_solids}")
        for name, most in (("half_width", self.half_width), ("height", self.height)):
            if most[0] <= 2 * CAMERA_MARGIN:
                raise ValueError(f"{name} must be above {2 * CAMERA_MARGIN}, where cameras have room, got {most}")
        if self.level[1] > 1:
            raise ValueError(f"level must be up to 1, the ceiling, got {self.level}")
        for name in ("aim", "roll"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.wild <= 1:
            raise ValueError(f"wild must be in 0 … 1, got {self.wild}")
        if self.fov[1] >= 170:
            raise ValueError(f"fov must be below 170 degrees, got {self.fov}")
