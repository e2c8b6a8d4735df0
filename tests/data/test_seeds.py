import pytest
import torch

from geomtx.data.seeds import FIRST_HELD_OUT_SEED, held_out_seed, is_held_out, training_seed


def test_training_and_held_out_seeds_have_none_in_common():
    trained = [training_seed(stream, step, index) for stream in range(3) for step in range(200) for index in range(10)]
    held_out = [held_out_seed(index) for index in range(1000)] + [held_out_seed(FIRST_HELD_OUT_SEED - 1)]
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, held_out))
    assert len(set(trained)) == len(trained)


def test_neither_have_the_random_numbers_they_give():
    """torch reads the lower 32 bits of a seed: held-out seeds have to differ from the others in these."""
    assert FIRST_HELD_OUT_SEED < 2**32
    for index in (0, 1, 12345, FIRST_HELD_OUT_SEED - 1):
        seeds = (index, held_out_seed(index))
        numbers = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        assert not torch.equal(*numbers)


def test_seeds_are_the_same_on_every_machine():
    assert [training_seed(0, 0, 0), training_seed(0, 0, 1), training_seed(42, 7, 3)] == [
        361313741,
        21354507,
        324902644,
    ]
    assert held_out_seed(5) == 2**31 + 5


@pytest.mark.parametrize("index", [-1, FIRST_HELD_OUT_SEED])
def test_an_index_out_of_range(index: int):
    with pytest.raises(ValueError, match=rf"^index must be in 0 … {2**31 - 1}, got {index}$"):
        held_out_seed(index)
