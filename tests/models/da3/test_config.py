import pytest

from geomtx import DepthAnything3Config


def test_layers_end_with_the_blocks_that_heads_read():
    assert DepthAnything3Config.small().layers == (0, 1, 2, 3)
    assert DepthAnything3Config.large().layers == (1, 3, 5, 7)
    giant = DepthAnything3Config.giant()
    assert giant.layers == (3, 7, 10, 13)
    assert giant.order == (("global",), *((("frame", "global"),) * 13))
    mono = DepthAnything3Config.mono()
    assert (mono.layers, mono.order) == (mono.taps, (("frame",),) * 24)


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "large", "giant", "mono", "metric_large"])
def test_a_configuration_comes_back_from_its_numbers(preset):
    config = getattr(DepthAnything3Config, preset)()
    assert DepthAnything3Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ("sky",)}, "^head must be one of .*'rays'.*, got 'sky'"),
        ({"heads": "depth"}, "^heads must be a tuple of names, got 'depth'$"),
        ({"taps": (2, 3, 5, 7)}, r"^taps must be odd and above first_global, 2, so that .*, got \(2, 3, 5, 7\)$"),
        ({"taps": (3, 5, 7, 9)}, "^tap must be one of .*, got 9"),
        ({"reference": "last"}, "^reference must be one of .*, got 'last'"),
        ({"first_global": 8}, "^first_global must be one of .*, got 8"),
        ({"metric": True}, "^metric must be False for a model of many views, got True$"),
        ({"num_heads": 3}, "^dim / num_heads must be a multiple of 4"),
    ],
)
def test_numbers_that_make_no_model(changes, message):
    with pytest.raises(ValueError, match=message):
        DepthAnything3Config.tiny(**changes)
