"""Small pictures of a room whose colours are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geomtx.data.synthetic.lighting import LitRoom
from geomtx.data.synthetic.rooms import Lights
from geomtx.data.synthetic.solids import NUM_WAVES, Solids, Textures, paint
from geomtx.types import Cameras

PAINTS = torch.linspace(0.2, 0.8, 21, dtype=torch.float64).reshape(7, 3)  # six walls and a box, evenly coloured
LIGHTS = Lights(
    position=torch.tensor([[0.5, -0.9, 0.4]], dtype=torch.float64),
    color=torch.tensor([[0.5, 0.4, 0.3]], dtype=torch.float64),
    ambient=torch.tensor([[0.2, 0.25, 0.3]], dtype=torch.float64),
    sky=torch.tensor([[0.0, 0.3, 0.1]], dtype=torch.float64),
)
FOCAL, SIZE = 8.0, 9


def plain_textures() -> Textures:
    """Of one colour each: both colours are alike and there is no grain."""
    zeros = torch.zeros(1, 7, dtype=torch.float64)
    colors = PAINTS[None, :, None].expand(1, 7, 2, 3)
    waves = torch.ones(1, 7, NUM_WAVES, 3, dtype=torch.float64)
    return Textures(waves, torch.zeros(1, 7, NUM_WAVES, dtype=torch.float64), zeros, zeros + 1, colors, zeros)


def room(*, box: bool = True) -> Solids:
    """The room from -1 to 1, but for its wall ahead at z = 3, with a box of half a side 0.25 about (0.1, 0.2, 2)."""
    center = torch.tensor([0.1, 0.2, 2.0], dtype=torch.float64)
    normals = torch.cat([torch.eye(3), -torch.eye(3)]).to(torch.float64)
    return Solids(
        torch.zeros(1, 1, 3, 3, dtype=torch.float64),
        center[None, None],
        normals[None, None],
        (normals @ center + 0.25)[None, None],
        torch.tensor([[box]]),
        torch.tensor([[-1.0, -1, -1]], dtype=torch.float64),
        torch.tensor([[1.0, 1, 3]], dtype=torch.float64),
        torch.full((1, 1), 0.5, dtype=torch.float64),
    )


def photograph(*, box: bool, shadows: bool) -> tuple[Tensor, Tensor]:
    """Picture (3, SIZE, SIZE) and depth of a camera at the origin that looks along z."""
    middle = (SIZE - 1) / 2
    k = torch.tensor([[FOCAL, 0, middle], [0, FOCAL, middle], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(torch.eye(3, 4, dtype=torch.float64)[None, None], k[None, None])
    image, depth = LitRoom(room(box=box), plain_textures(), LIGHTS, shadows).photograph(cameras, (SIZE, SIZE), 1)
    return image[0, 0], depth[0, 0]


def lamp_light(point: Tensor, normal: Tensor) -> Tensor:
    """Of the lamp alone: Lambert's cosine, and a fall-off of 6 / (3 + d²), at most 1.5."""
    way = LIGHTS.position[0] - point
    distance = way.norm()
    cosine = max(float(way @ normal / distance), 0.0)
    return LIGHTS.color[0] * cosine * min(6 / (3 + float(distance) ** 2), 1.5)


def shade(paint_of: int, point: Tensor, normal: Tensor, *, hidden: bool) -> Tensor:
    ambient = LIGHTS.ambient[0] * (1 + normal @ LIGHTS.sky[0])
    return PAINTS[paint_of] * (ambient + lamp_light(point, normal) * (0.15 if hidden else 1.0))


def expected(row: int, column: int, *, box: bool, shadows: bool) -> tuple[Tensor, float]:
    """Colour and depth of a pixel, ray by ray."""
    middle = (SIZE - 1) / 2
    ray = torch.tensor([(column - middle) / FOCAL, (row - middle) / FOCAL, 1.0], dtype=torch.float64)
    front = 1.75 * ray  # where it meets the plane of the box's face
    if box and abs(front[0] - 0.1) < 0.25 and abs(front[1] - 0.2) < 0.25:
        normal = torch.tensor([0.0, 0, -1], dtype=torch.float64)
        return shade(6, front, normal, hidden=False), 1.75
    # 1 or -1 over the ray: the side walls; 3: the wall ahead, which all rays of this narrow camera meet.
    point = 3 * ray
    if point[:2].abs().max() >= 1:
        axis = int(point[:2].abs().argmax())
        point = ray / ray[axis].abs()
        normal = torch.zeros(3, dtype=torch.float64)
        normal[axis] = -ray[axis].sign()
        return shade(axis + 3 * int(ray[axis] > 0), point, normal, hidden=shadows and shaded(point)), float(point[2])
    normal = torch.tensor([0.0, 0, -1], dtype=torch.float64)
    return shade(5, point, normal, hidden=shadows and shaded(point)), 3.0


def shaded(point: Tensor) -> bool:
    """Whether the box is on the way to the lamp, by trying many places of the way."""
    share = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    way = point + share * (LIGHTS.position[0] - point)
    return bool(((way - torch.tensor([0.1, 0.2, 2.0], dtype=torch.float64)).abs() < 0.25).all(-1).any())


@pytest.mark.parametrize(("box", "shadows"), [(False, False), (True, False), (True, True)])
def test_a_small_picture_of_known_colours(box: bool, shadows: bool) -> None:
    image, depth = photograph(box=box, shadows=shadows)
    truth = [[expected(row, column, box=box, shadows=shadows) for column in range(SIZE)] for row in range(SIZE)]
    colors = torch.stack([torch.stack([color for color, _ in row]) for row in truth]).movedim(-1, 0)
    assert colors.min() > 0.01
    assert colors.max() < 1  # nothing is clipped, so every term shows
    torch.testing.assert_close(image, colors, atol=1e-9, rtol=0)
    torch.testing.assert_close(depth, torch.tensor([[z for _, z in row] for row in truth], dtype=depth.dtype))


def test_the_picture_has_shadows_light_faces_and_a_fall_off() -> None:
    """What the picture of known colours rests on: it shows each of them."""
    lit, shaded_image = (photograph(box=True, shadows=shadows)[0] for shadows in (False, True))
    depth = photograph(box=True, shadows=True)[1]
    face = depth == 1.75
    assert face.sum() >= 4
    assert torch.equal(lit[:, face], shaded_image[:, face])  # the box doesn't shade the face that the lamp sees
    assert ((lit - shaded_image).amax(0) > 0.02).sum() >= 3
    near, far = (
        lamp_light(torch.tensor(point, dtype=torch.float64), torch.tensor([0.0, 0, -1], dtype=torch.float64))
        for point in ([0.5, -0.9, 1.4], [0.5, -0.9, 3.0])
    )
    assert far.max() < 0.7 * near.max()


# Textures


def waves(product: float, wave: float) -> Textures:
    """One wave along x, the second at right angles to it, the others without a slope."""
    vectors = torch.zeros(1, 1, NUM_WAVES, 3, dtype=torch.float64)
    vectors[..., 0, 0] = vectors[..., 1, 1] = wave
    one = torch.ones(1, 1, dtype=torch.float64)
    colors = torch.tensor([[[[0.0, 0.2, 0.4], [1.0, 0.6, 0.5]]]], dtype=torch.float64)
    return Textures(vectors, torch.zeros(1, 1, NUM_WAVES, dtype=torch.float64), product * one, one, colors, 0 * one)


@pytest.mark.parametrize("product", [0.0, 1.0])
def test_waves_finer_than_a_pixel_fade_to_their_mean(product: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 1, 500, 3, dtype=torch.float64, generator=generator)
    surface = torch.zeros(1, 1, 500, dtype=torch.long)
    textures = waves(product, 40.0)
    sharp = paint(textures, surface, points, torch.zeros(1, 1, 500, dtype=torch.float64))
    assert sharp.std(dim=2).max() > 0.1
    coarse = paint(textures, surface, points, torch.full((1, 1, 500), 1.0, dtype=torch.float64))
    middle = textures.colors[0, 0].mean(0).expand_as(coarse)
    torch.testing.assert_close(coarse, middle, atol=1e-6, rtol=0)


def test_the_fade_is_that_of_a_box_as_wide_as_the_pixel() -> None:
    """The mean of a wave over a pixel, to second order in its width."""
    wave, width = 10.0, 0.05
    x = torch.linspace(0, 0.3, 40, dtype=torch.float64)
    offsets = torch.linspace(-width / 2, width / 2, 2001, dtype=torch.float64)
    mean = (wave * (x[:, None] + offsets)).sin().mean(-1) / NUM_WAVES**0.5
    points = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=-1)[None, None]
    textures = waves(0.0, wave)
    color = paint(textures, torch.zeros(1, 1, 40, dtype=torch.long), points, torch.full((1, 1, 40), width).double())
    share = (color[0, 0, :, 0] - 0.0) / 1.0
    torch.testing.assert_close(share.logit(), mean, atol=1e-3, rtol=0)
