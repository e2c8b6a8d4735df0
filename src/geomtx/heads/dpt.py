"""Dense prediction transformer decoder (Ranftl et al. 2021), as VGGT uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_divisible, check_positive, check_shape
from geomtx.heads.head import Head, HeadFootprint
from geomtx.layers.conv import ResidualConv
from geomtx.layers.position import aspect_grid, grid_signal
from geomtx.types import Float, ProjectedTokens, Tokens

__all__ = ["DPTDecoder", "DecoderHead"]


class Fusion(nn.Module):
    """Add a skip connection to the coarser map and resize the sum to the next size.

    Args:
        dim: Number of channels C of the maps.
        has_skip: Whether there is a skip connection.
        rectified_skip: Whether the residual units' skips are rectified, see `ResidualConv`.
        crop: Whether the sum is doubled in size and cropped at the bottom and right, instead of resized to the size.
    """

    def __init__(self, dim: int, *, has_skip: bool, rectified_skip: bool = True, crop: bool = False) -> None:
        super().__init__()
        self.crop = crop
        self.skip_unit = ResidualConv(dim, rectified_skip=rectified_skip) if has_skip else None
        self.unit = ResidualConv(dim, rectified_skip=rectified_skip)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return the fused map, (N, C, *size), of the coarser map and of the skip connection, (N, C, H, W) each."""
        if self.skip_unit is not None and skip is not None:
            x = x + self.skip_unit(skip)
        # A 1x1 convolution and bilinear resizing commute; before the resizing, the convolution is four times cheaper.
        x = self.out(self.unit(x))
        if not self.crop:
            return resize(x, size)
        return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))[..., : size[0], : size[1]]


class FusionChain(nn.ModuleList):
    """Four `Fusion` units, which merge four maps from coarse to fine.

    Args:
        dim: Number of channels C of the maps.
        rectified_skip: Whether the residual units' skips are rectified, see `ResidualConv`.
        factor: Size of the merged map in sizes of the finest map.
        crop: Whether a map is doubled and cropped to the size of the next, instead of resized to it (DUSt3R); for a
            grid with an odd number of rows or columns the two differ.
        unused_skip: Whether the coarsest unit too has weights for a skip connection, which it doesn't have: published
            weights do, and nothing uses them.

    Raises:
        ValueError: If `crop` is True with another factor than 2.
    """

    def __init__(
        self,
        dim: int,
        *,
        rectified_skip: bool = True,
        factor: int = 2,
        crop: bool = False,
        unused_skip: bool = False,
    ) -> None:
        super().__init__(
            Fusion(dim, has_skip=level < 3 or unused_skip, rectified_skip=rectified_skip, crop=crop)
            for level in range(4)
        )
        if crop and factor != 2:
            raise ValueError(f"crop must be False for a merged map of {factor} sizes of the finest, got True")
        self.rectified_skip = rectified_skip
        self.factor = factor
        self.crop = crop
        self.unused_skip = unused_skip
        if unused_skip:
            unused = {name: each for name, each in self.named_parameters() if name.startswith("3.skip_unit.")}
            self.unused_parameters = tuple(unused)
            for parameter in unused.values():
                parameter.requires_grad_(False)  # so that DDP doesn't wait for one

    def forward(self, maps: Sequence[Float[Tensor, "n c _ _"]]) -> Float[Tensor, "n c h w"]:
        """Return the merged map, of `factor` times the size of the finest map.

        Args:
            maps: Maps from fine to coarse, (N, C, H, W) each, every one about half as large as the one before.
        """
        maps = list(maps)
        merged = maps.pop()
        for level in (3, 2, 1):
            skip = None if level == 3 else maps.pop()
            merged = self[level](merged, skip, maps[-1].shape[-2:])
        height, width = maps[0].shape[-2:]
        return self[0](merged, maps.pop(), (self.factor * height, self.factor * width))


class DPTDecoder(nn.Module):
    """Decode four layers of tokens to one feature map.

    Each layer is projected, resized to a scale of its own (4, 2, 1 and 1/2 pixels for a patch), and the maps are merged
    from coarse to fine.

    Args:
        dim: Number of channels C of the tokens; a tuple where it is another one for each tap.
        features: Number of channels of the merged maps.
        channels: Numbers of channels of the four projections.
        taps: Indices of the four layers of the encoder to read, in ascending order.
        out_channels: Number of channels of the output; defaults to `features` / 2.
        stride: Side in pixels of the image of a pixel of the output; None for the merged map of the finest scale
            itself, with four pixels a side of a patch and `features` channels, for a `PixelShuffleHead`.
        position_signal: Whether to add a sine-cosine encoding of the position, times 0.1, after the projections and at
            the end; all numbers of channels must then be multiples of 4.
        token_norm: Whether the tokens are normalised by a LayerNorm first.
        fusion: Options of the fusion of maps: `rectified_skip`, `crop` and `unused_skip`, as for `FusionChain`.

    Raises:
        ValueError: If there are not four taps and four channels, a number of channels is no multiple of 4 where it
            must be, or tokens of several numbers of channels are to be normalised; and as `FusionChain`.
    """

    def __init__(
        self,
        dim: int | tuple[int, int, int, int] = 2048,
        features: int = 256,
        *,
        channels: tuple[int, int, int, int] = (256, 512, 1024, 1024),
        taps: tuple[int, int, int, int] = (4, 11, 17, 23),
        out_channels: int | None = None,
        stride: int | None = 1,
        position_signal: bool = True,
        token_norm: bool = True,
        **fusion: bool,
    ) -> None:
        super().__init__()
        if len(channels) != 4 or len(taps) != 4:
            raise ValueError(f"channels and taps must have four entries, got {channels} and {taps}")
        dims = (dim,) * 4 if isinstance(dim, int) else tuple(dim)
        if len(dims) != 4 or (token_norm and not isinstance(dim, int)):
            raise ValueError(f"dim must be a number, or of four taps without token_norm, got {dim}")
        if stride is not None:
            check_positive("stride", stride)
        self.dim = dim
        self.features = features
        self.channels = tuple(channels)
        self.taps = tuple(taps)
        self.stride = stride
        self.position_signal = position_signal
        self.token_norm = token_norm
        if stride is None and out_channels not in (None, features):
            raise ValueError(f"out_channels must be those of the merged map, {features}, got {out_channels}")
        self.out_channels = out_channels or (features if stride is None else features // 2)
        if position_signal:
            for count in (*channels, self.out_channels):
                check_divisible("channels", count, 4)
        self.dims = dims
        self.norm = nn.LayerNorm(dims[0]) if token_norm else nn.Identity()
        self.project = nn.ModuleList(nn.Conv2d(c, count, 1) for c, count in zip(dims, channels, strict=True))
        self.rescale = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(count, features, 3, padding=1, bias=False) for count in channels)
        self.fuse = FusionChain(features, factor=1 if stride is None else 2, **fusion)
        self.rectified_skip, self.crop, self.unused_skip = (
            getattr(self.fuse, name) for name in ("rectified_skip", "crop", "unused_skip")
        )
        self.smooth = None if stride is None else nn.Conv2d(features, self.out_channels, 3, padding=1)

    def decode(self, tokens: Tokens | ProjectedTokens) -> Float[Tensor, "b s c h w"]:
        """Decode every view of the scenes by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `project_tap`.

        Returns:
            Feature maps, (B, S, out_channels, H / stride, W / stride).

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        projected = self.project_all(tokens)
        return self.merge(projected.maps, projected.image_hw).unflatten(0, projected.views)

    def project_all(self, tokens: Tokens | ProjectedTokens) -> ProjectedTokens:
        """Return the projections of the four layers; those that are given as they are.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps, or their projections.

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        if isinstance(tokens, ProjectedTokens):
            return tokens
        layers = [tokens.layer(tap) for tap in self.taps]
        for layer, dim in zip(layers, self.dims, strict=True):
            check_shape("tokens", layer, ("B", "S", "P", dim))
        mask = tokens.patch_mask()
        maps = tuple(
            self.project_tap(
                level, layer[:, :, tokens.num_special :].flatten(0, 1), tokens.grid_hw, tokens.image_hw, mask
            )
            for level, layer in enumerate(layers)
        )
        return ProjectedTokens(maps, tokens.views, tokens.image_hw)

    def forward(
        self,
        layers: Sequence[Float[Tensor, "n p c"]],
        grid_hw: tuple[int, int],
        image_hw: tuple[int, int],
        patch_mask: Tensor | None = None,
    ) -> Float[Tensor, "n c_out h w"]:
        """Decode a batch of N views.

        Args:
            layers: Patch tokens of the four taps, (N, P, C) each.
            grid_hw: Numbers of rows and columns of patches.
            image_hw: Height and width of the images in pixels.
            patch_mask: Mask of the valid patches, (N, P) bool; the others become zero, as beyond the border.
                Defaults to all.

        Returns:
            Feature maps, (N, out_channels, H / stride, W / stride).

        Raises:
            ValueError: If the number of layers is another one.
        """
        if len(layers) != len(self.taps):
            raise ValueError(f"layers must have {len(self.taps)} entries, got {len(layers)}")
        return self.merge(
            [self.project_tap(level, layer, grid_hw, image_hw, patch_mask) for level, layer in enumerate(layers)],
            image_hw,
        )

    def project_tap(
        self,
        level: int,
        tokens: Float[Tensor, "n p c"],
        grid_hw: tuple[int, int],
        image_hw: tuple[int, int],
        patch_mask: Tensor | None = None,
    ) -> Float[Tensor, "n c_out rows columns"]:
        """Normalise and project one layer: all of it that the decoder needs, in fewer channels.

        Args:
            level: Index of the layer among the four taps.
            tokens: Patch tokens of the layer, (N, P, C).
            grid_hw: Numbers of rows and columns of patches.
            image_hw: Height and width of the images in pixels.
            patch_mask: Mask of the valid patches, see `forward`.

        Returns:
            Projected map, (N, channels of the level, rows, columns).
        """
        x = self.norm(tokens)
        if patch_mask is not None:
            x = x.masked_fill(~patch_mask[..., None], 0.0)
        maps = x.transpose(1, 2).unflatten(2, grid_hw)  # (N, C, rows, columns)
        return self._add_signal(self.project[level](maps), image_hw)

    def merge(self, projected: Sequence[Tensor], image_hw: tuple[int, int]) -> Float[Tensor, "n c_out h w"]:
        """Merge the projected layers; the second half of `forward`.

        Args:
            projected: Results of `project_tap` for the four layers, (N, channels, rows, columns) each.
            image_hw: Height and width of the images in pixels.

        Returns:
            Feature maps, (N, out_channels, H / stride, W / stride).
        """
        return self.finish(self.fuse(self.reduce_taps(projected)), image_hw)

    def reduce_taps(self, projected: Sequence[Tensor]) -> list[Tensor]:
        """Return the projected layers at their scales with `features` channels each, from fine to coarse.

        Args:
            projected: Results of `project_tap` for the four layers, (N, channels, rows, columns) each.
        """
        return [self.reduce[level](self.rescale[level](x)) for level, x in enumerate(projected)]

    def finish(self, merged: Tensor, image_hw: tuple[int, int]) -> Float[Tensor, "n c_out h w"]:
        """Return the decoder's output from the merged map: with a stride smoothed and resized; with encoded positions.

        Args:
            merged: Result of `fuse` for the reduced layers, (N, features, H', W').
            image_hw: Height and width of the images in pixels.
        """
        if self.smooth is not None and self.stride is not None:
            merged = resize(self.smooth(merged), (image_hw[0] // self.stride, image_hw[1] // self.stride))
        return self._add_signal(merged, image_hw)

    def footprint(
        self, *, hidden_dim: int = 0, results: float = 0, patch_size: int = 14, keeps_reduced: bool = False
    ) -> HeadFootprint:
        """Return the memory of a head that decodes with it.

        Args:
            hidden_dim: Number of channels of the head's hidden maps, of the size of the decoder's output.
            results: Numbers that the head predicts for a pixel.
            patch_size: Side of a patch in pixels.
            keeps_reduced: Whether the head holds on to the reduced layers while it decodes.
        """
        # The merged map has 8 pixels a patch and side, or 4 without a stride; where it is made, up to three and a half
        # such maps are alive.
        merged = self.features * ((4 if self.stride is None else 8) / patch_size) ** 2
        side = patch_size / 4 if self.stride is None else self.stride
        of_output = self.out_channels / side**2
        after = max(2 * of_output + merged / 2, of_output + 2 * hidden_dim / side**2 + merged)
        reduced = merged * sum(4.0**-level for level in range(1, 5)) if keeps_reduced else 0
        shared = of_output if self.position_signal else 0
        return HeadFootprint(self.channels, max(3.5 * merged, after) + reduced, shared, results)

    def _add_signal(self, x: Tensor, image_hw: tuple[int, int]) -> Tensor:
        return add_position_signal(x, image_hw) if self.position_signal else x


def add_position_signal(x: Float[Tensor, "n c h w"], image_hw: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Add a sine-cosine encoding of the position in the image, times 0.1, to maps (N, C, H, W).

    Args:
        x: Maps, whose number of channels is a multiple of 4.
        image_hw: Height and width of the images in pixels.
    """
    columns, rows = aspect_grid((x.shape[-2], x.shape[-1]), image_hw, x)
    return x + grid_signal(columns, rows, x.shape[1], base=100.0, scale=0.1, dtype=x.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, C, H, W) bilinearly, with the centres of the corner pixels aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class DecoderHead(Head):
    """Base of heads that read the projections of a DPT decoder.

    Args:
        decoder: Decoder from tokens to a feature map.
    """

    reads = "projections"

    def __init__(self, decoder: DPTDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers that the decoder projects.

        Args:
            taps: Indices of the encoder's layers.
        """
        return self.decoder.taps
