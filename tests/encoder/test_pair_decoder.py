import pytest
import torch

from geomtx.encoder import CompletionDecoder, PairDecoder, PatchTransformer
from geomtx.encoder.patch_transformer import PatchPositions
from reference import randomize, relative_error, without_gradient

IN, DIM = 24, 16


@pytest.fixture
def encoder() -> PatchTransformer:
    return randomize(PatchTransformer(IN, 2, num_heads=2, patch_size=4)).double().eval()


@pytest.fixture
def decoder() -> PairDecoder:
    return randomize(PairDecoder(IN, DIM, 3, num_heads=2)).double().eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64)


@torch.no_grad()
def test_streams_with_the_same_weights_can_be_exchanged(encoder, decoder):
    a, b = encoder(images(8, 12)), encoder(images(12, 4))
    decoder.second_blocks.load_state_dict(decoder.first_blocks.state_dict())
    taps = (0, 1, 2, 3)
    (one, two), (three, four) = decoder(a, b, taps), decoder(b, a, taps)
    for tap in taps:
        torch.testing.assert_close(one.layer(tap), four.layer(tap), rtol=0, atol=1e-12)
        torch.testing.assert_close(two.layer(tap), three.layer(tap), rtol=0, atol=1e-12)
    assert torch.equal(one.layer(0), a.layer(0))
    assert one.grid_hw == (2, 3)
    assert two.grid_hw == (3, 1)


@torch.no_grad()
def test_each_stream_reads_the_other_before_the_same_block(encoder, decoder):
    """The first block sees the other image's embedding, whatever the other stream's blocks do."""
    a, b = encoder(images(8, 8)), encoder(images(8, 8))
    before = decoder(a, b, (1, 2))[0]
    randomize(decoder.second_blocks[0])
    after = decoder(a, b, (1, 2))[0]
    assert torch.equal(after.layer(1), before.layer(1))
    assert relative_error(after.layer(2), before.layer(2)) > 1e-6


@torch.no_grad()
def test_the_last_layer_alone_is_normalised(encoder, decoder):
    decoder.norm.load_state_dict({"weight": torch.ones(DIM), "bias": torch.zeros(DIM)})
    for tokens in decoder(encoder(images(8, 8)), encoder(images(8, 8)), (2, 3)):
        torch.testing.assert_close(tokens.layer(3).mean(-1), torch.zeros(2, 1, 4).double(), rtol=0, atol=1e-6)
        assert tokens.layer(2).mean(-1).abs().max() > 1e-3


@torch.no_grad()
def test_only_differences_of_positions_count(encoder):
    """An image whose patches are all moved by a row and a column has the same tokens."""
    whole = encoder(images(12, 12).repeat(1, 1, 1, 1))
    picture = images(12, 12)
    hidden = torch.zeros(2, 3, 3, dtype=torch.bool)
    hidden[:, 2], hidden[:, :, 2] = True, True
    moved = hidden.flip(1, 2)
    shifted = picture.roll((4, 4), (2, 3))
    a, b = encoder(picture, hidden.flatten(1)), encoder(shifted, moved.flatten(1))
    torch.testing.assert_close(a.layer(0), b.layer(0), rtol=0, atol=1e-12)
    assert a.layer(0).shape[2] == 4
    assert whole.layer(0).shape[2] == 9


@torch.no_grad()
def test_hidden_patches_are_not_seen(encoder):
    picture = images(8, 8)
    hidden = torch.tensor([[True, False, False, False], [False, False, True, False]])
    other = picture.clone()
    other[0, :, :4, :4] = torch.nan
    other[1, :, 4:, :4] = 7
    assert torch.equal(encoder(picture, hidden).layer(0), encoder(other, hidden).layer(0))
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(encoder(picture, none).layer(0), encoder(picture).layer(0))
    with pytest.raises(
        ValueError, match=r"^hidden must have as many patches in each image, got other numbers in some$"
    ):
        encoder(picture, torch.tensor([[True, False, False, False], [True, True, False, False]]))


def test_completion_puts_visible_patches_where_they_were(encoder):
    decoder = randomize(CompletionDecoder(IN, DIM, 2, num_heads=2, patch_size=4)).double()
    picture, second = images(8, 12), encoder(images(8, 8))
    hidden = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    out = decoder(encoder(picture, hidden), second, hidden)
    assert out.shape == (2, 6, 48)
    out.square().sum().backward()
    assert without_gradient(decoder) == []
    # With a decoder that does nothing but embed and predict, a visible patch's result is its own token's.
    with torch.no_grad():
        for block in decoder.blocks:
            for layer in (block.attention.out, block.cross_attention.out, block.mlp.contract):
                layer.weight.zero_()
                layer.bias.zero_()
        first = encoder(picture, hidden)
        expected = decoder.out(decoder.norm(decoder.embed(first.layer(0)[:, 0])))
        out = decoder(first, second, hidden)
        torch.testing.assert_close(out[~hidden], expected.flatten(0, 1), rtol=0, atol=1e-12)
        blank = decoder.out(decoder.norm(decoder.mask_token[0]))
        torch.testing.assert_close(out[hidden], blank.expand(8, -1), rtol=0, atol=1e-12)


def test_a_table_of_positions_serves_one_grid():
    positions = PatchPositions(8, 2, rope_base=None, table_side=3)
    x = torch.zeros(1, 9, 8)
    table = positions.add(x, (3, 3))[0]
    assert positions.rotations(x, (3, 3)) is None
    assert len({tuple(row) for row in table.tolist()}) == 9
    # Half of the channels depend on the column alone, half on the row alone.
    grid = table.unflatten(0, (3, 3))
    assert torch.equal(grid[0, :, :4], grid[2, :, :4])
    assert torch.equal(grid[:, 0, 4:], grid[:, 2, 4:])
    with pytest.raises(ValueError, match=r"^grid must be 3x3 for a table of positions, got 2x3$"):
        positions.add(x[:, :6], (2, 3))


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs(encoder, decoder):
    tokens = encoder(images(8, 8))
    with pytest.raises(ValueError, match=r"^tap must be one of 0, 1, 2, 3, got 4$"):
        decoder(tokens, tokens, (4,))
    with pytest.raises(ValueError, match=r"^tokens must have shape \(N, 1, P, 24\), got"):
        decoder(tokens, tokens._replace(layers={0: torch.zeros(2, 1, 4, 5)}))
