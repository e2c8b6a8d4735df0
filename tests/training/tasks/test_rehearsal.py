import pytest
import torch

from geomtx.training.tasks.rehearsal import Rehearsal

STYLE = {"num_solids": [1, 2], "shadows": False}


def test_rooms_of_the_images_size():
    rooms = Rehearsal(scenes=2, views=(3,), num_tracks=4, style=STYLE).draw_rooms(torch.rand(1, 5, 3, 28, 42))
    assert rooms.images.shape == (2, 3, 3, 28, 42)
    assert rooms.tracks.coords_px.shape == (2, 3, 4, 2)
    torch.testing.assert_close(rooms.cameras.cam_from_world[:, 0], torch.eye(3, 4).expand(2, -1, -1))
    assert Rehearsal(scenes=1, views=(2,), num_tracks=0, style=STYLE).draw_rooms(rooms.images).tracks is None


def test_rooms_are_drawn_from_the_global_generator():
    rehearsal, images = Rehearsal(scenes=1, views=(2, 3), style=STYLE), torch.rand(1, 2, 3, 28, 28)
    torch.manual_seed(3)
    first, second = (rehearsal.draw_rooms(images).images for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(rehearsal.draw_rooms(images).images, first)
    assert first.shape != second.shape or not torch.equal(first, second)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"weight": -1.0}, r"^weight must be at least 0, got -1.0$"),
        ({"scenes": 0}, r"^scenes must be a whole number, at least 1, got 0$"),
        ({"views": (2, 25)}, r"^views must be numbers up to 24, got \(2, 25\)$"),
        ({"views": ()}, r"^views must be numbers up to 24, got \(\)$"),
        ({"num_tracks": 2000}, r"^num_tracks must be in 0 … 1024, got 2000$"),
        ({"style": {"widht": 3}}, r"^config key must be one of .*, got 'style.widht'"),
    ],
)
def test_errors(values, error):
    with pytest.raises(ValueError, match=error):
        Rehearsal(**values)
