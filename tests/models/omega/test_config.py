import pytest

from geomtx import VGGTOmegaConfig


def test_register_attention_is_an_entry_of_the_order():
    order = VGGTOmegaConfig().order
    assert len(order) == 24
    assert [index for index, layer in enumerate(order) if layer == ("frame", "register")] == [2, 6, 9, 14, 20]
    assert set(order) == {("frame", "register"), ("frame", "global")}


@pytest.mark.parametrize("preset", [VGGTOmegaConfig, VGGTOmegaConfig.tiny])
def test_a_configuration_comes_back_from_its_numbers(preset):
    assert VGGTOmegaConfig.from_dict(preset().to_dict()) == preset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ("points",)}, "^head must be one of 'camera', 'depth', 'text', got 'points'"),
        ({"heads": "depth"}, "^heads must be a tuple of names, got 'depth'$"),
        ({"taps": (0, 1, 2, 4)}, "^layer must be one of .*, got 4"),
        ({"register_layers": (5,)}, "^layer must be one of .*, got 5"),
        ({"patch_size": 14}, "^patch_size must be a multiple of 4, got 14"),
        ({"num_heads": 3}, "^dim / num_heads must be a multiple of 4"),
        ({"vit_num_heads": 0}, "^vit_num_heads must be positive, got 0"),
    ],
)
def test_numbers_that_make_no_model(changes, message):
    with pytest.raises(ValueError, match=message):
        VGGTOmegaConfig.tiny(**changes)
