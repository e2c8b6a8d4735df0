import torch
from torch.nn import functional as F

from geomtx import VGGT, VGGTConfig
from geomtx.models.video_tracker.model import VGGTFeatures
from reference import randomize


def source(**options) -> VGGTFeatures:
    return randomize(VGGTFeatures(VGGT(VGGTConfig.tiny(dim=16)), **{"stride": 4, **options})).eval()


def test_maps_are_those_of_the_decoder_averaged():
    model, video = source(), torch.rand(2, 3, 3, 28, 42)
    tokens = model.vggt.encoder(video)
    maps = model.decoder.decode(tokens)
    assert maps.shape[-2:] == (14, 21)
    torch.testing.assert_close(model(video), F.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, (2, 3)))


def test_pieces_are_clips_of_their_own():
    model, video = source(encoder_frames=2), torch.rand(1, 5, 3, 28, 28)
    whole = source()
    whole.load_state_dict(model.state_dict())
    expected = torch.cat([whole(video[:, :2]), whole(video[:, 2:4]), whole(video[:, 4:])], dim=1)
    torch.testing.assert_close(model(video), expected)
    assert not torch.allclose(whole(video), expected, atol=1e-3)


def test_its_decoder_is_not_that_of_the_head_inside():
    model = source()
    assert not {id(p) for p in model.decoder.parameters()} & {id(p) for p in model.vggt.parameters()}
