import pytest

from geomtx import Pi3Config


def test_poses_are_injected_after_some_pairs_of_blocks():
    pi3x = Pi3Config.pi3x()
    assert pi3x.order[:4] == (("frame", "global"), ("pose",), ("frame", "global"), ("frame", "global"))
    assert len(pi3x.order) == 18 + 5
    assert pi3x.taps == (22,)
    assert Pi3Config.pi3().order == (("frame", "global"),) * 18
    assert Pi3Config.pi3().taps == (17,)
    assert Pi3Config.tiny(known_geometry=True, pose_layers=(2,)).taps == (2,)  # not the layer that injects


@pytest.mark.parametrize("preset", ["tiny", "pi3", "pi3x"])
def test_a_configuration_comes_back_from_its_numbers(preset):
    config = getattr(Pi3Config, preset)()
    assert Pi3Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ("metric",)}, "^head must be one of .*, got 'metric'"),
        ({"heads": "depth"}, "^heads must be a tuple of names, got 'depth'$"),
        ({"num_heads": 3}, "^dim / num_heads must be a multiple of 4"),
        ({"dim": 24, "known_geometry": True}, "^dim / num_heads must be a multiple of 8, got 12"),
        ({"head_num_heads": 5}, "^head_dim / head_num_heads must be a multiple of 4"),
        ({"known_geometry": True, "pose_layers": (3,)}, "^pose layer must be one of .*, got 3"),
        ({"depth": 0}, "^depth must be"),
    ],
)
def test_numbers_that_make_no_model(changes, message):
    with pytest.raises(ValueError, match=message):
        Pi3Config.tiny(**changes)
