"""The resolution levels of a tokenizer, worked out once for encoder, decoder and halo."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution level.

    Attributes:
      width: channels of its blocks.
      attends: whether attention follows every ResBlock.
      window: attention window to either side in this level's columns; None: all columns.
      down: (rows, columns) stride to the next level; None at the last one.
      pixels: image pixels per column of this level.
    """

    width: int
    attends: bool
    window: int | None
    down: tuple[int, int] | None
    pixels: int


@dataclasses.dataclass(frozen=True)
class LevelStack:
    """All levels of a tokenizer, from the image down to the columns.

    Attributes: as the fields of `eqjax.Tokenizer` that bear the same names.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    resolution: int
    square_downsamples: int
    attention_window: int | None
    patch_size: int

    @property
    def widths(self):
        """Channels per level."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def stride(self):
        """(rows, columns) of the image per row and column of the last level."""
        downs = len(self.channel_multipliers) - 1
        return self.patch_size * 2**downs, self.patch_size * 2 ** min(downs, self.square_downsamples)

    @property
    def height(self):
        """Rows of the last level."""
        return self.resolution // self.stride[0]

    @property
    def levels(self):
        """A `Level` per resolution."""
        levels, pixels, last = [], self.patch_size, len(self.widths) - 1
        for i, width in enumerate(self.widths):
            down = None if i == last else (2, 2 if i < self.square_downsamples else 1)
            window = self.attention_window
            if window is not None:
                window *= self.stride[1] // pixels
            attends = self.resolution // (self.patch_size * 2**i) in self.attention_resolutions
            levels.append(Level(width, attends, window, down, pixels))
            pixels *= down[1] if down else 1
        return tuple(levels)

    def halo_columns(self):
        """Latent columns beyond a piece that can influence it, in encoder or decoder.

        A kernel of 3 reaches one column of its level to either side, attention its window; the
        sum in pixels, rounded up to whole columns, bounds both directions. None where attention
        sees all columns.
        """
        levels, n, stride = self.levels, self.num_res_blocks, self.stride[1]
        if self.attention_window is None:
            return None
        attention = self.attention_window * stride

        def block(level):
            return 2 * level.pixels + (attention if level.attends else 0)

        # Per direction: mid (two ResBlocks and attention), the 3×3 convolution between the map
        # and the columns, and two convolutions over columns.
        last = 4 * stride + attention + 3 * stride
        edge = self.patch_size  # the 3×3 convolution at the first level's resolution
        downs = sum(level.pixels for level in levels[:-1])
        ups = sum(level.pixels for level in levels[1:])
        encoder = edge + n * sum(map(block, levels)) + downs + last
        decoder = edge + (n + 1) * sum(map(block, levels)) + ups + last
        return -(-max(encoder, decoder) // stride)
