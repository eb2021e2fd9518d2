"""The resolution levels of a tokenizer, computed once for its encoder, its decoder and its halo."""

import dataclasses
import itertools

from eqjax.tokenizer.filters import REACH


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution level.

    Attributes:
      width: channels of its blocks.
      attends: whether attention follows every ResBlock.
      window: attention window to either side, in columns of this level; None: all columns.
      down: stride (rows, columns) to the next level; (1, 1) at the last one.
      pixels: image pixels per column of this level.
      filtered: whether columns are further apart than at the first level. There, shifts by whole columns of the map
        are all that is meant to be exact; at the others an alias-free tokenizer filters its nonlinearities.
    """

    width: int
    attends: bool
    window: int | None
    down: tuple[int, int]
    pixels: int
    filtered: bool


@dataclasses.dataclass(frozen=True)
class LevelStack:
    """All levels of a tokenizer, from the image down to the columns.

    The fields are those of `eqjax.Tokenizer` with the same names.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    resolution: int
    square_downsamples: int
    attention_window: int | None
    patch_size: int
    refine_channels: int | None = None
    resample: str = "shuffle"

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns of the image per row and column of the last level."""
        downs = len(self.channel_multipliers) - 1
        return self.patch_size * 2**downs, self.patch_size * 2 ** min(downs, self.square_downsamples)

    @property
    def heights(self) -> tuple[int, ...]:
        """Rows of every level."""
        return tuple(self.resolution // (self.patch_size * 2**i) for i in range(len(self.channel_multipliers)))

    @property
    def levels(self) -> tuple[Level, ...]:
        """One `Level` per resolution, the image's first."""
        levels, pixels, last = [], self.patch_size, len(self.channel_multipliers) - 1
        for i, (multiplier, height) in enumerate(zip(self.channel_multipliers, self.heights, strict=True)):
            down = (1, 1) if i == last else (2, 2 if i < self.square_downsamples else 1)
            window = self.attention_window
            if window is not None:
                window *= self.stride[1] // pixels
            attends, filtered = height in self.attention_resolutions, pixels > self.patch_size
            levels.append(Level(self.channels * multiplier, attends, window, down, pixels, filtered))
            pixels *= down[1]
        return tuple(levels)

    def halo_columns(self) -> int | None:
        """Returns how many latent columns around a tile can influence it, in the encoder or the decoder.

        A kernel of 3 reaches one column of its level to either side, attention reaches its window, filters reach as
        far as `eqjax.tokenizer.filters` says. The sum in pixels, rounded up to whole columns, bounds both directions.
        None if attention or filters see all columns.
        """
        levels, n, stride = self.levels, self.num_res_blocks, self.stride[1]
        if self.attention_window is None or self.resample == "fft":
            return None
        attention = self.attention_window * stride
        alias_free = self.resample != "shuffle"

        def filtered(level: Level) -> int:
            """Returns the reach of interpolation and decimation, each half of the low-pass filter's, around a layer."""
            return REACH * level.pixels if alias_free and level.filtered else 0

        def block(level: Level) -> int:
            layer = attention + filtered(level) if level.attends else 0
            return 2 * (level.pixels + filtered(level)) + layer

        def low_pass(level: Level, below: Level) -> int:
            """Returns the reach of the filter at a level before the next has its columns further apart."""
            return REACH * level.pixels if alias_free and below.pixels > level.pixels else 0

        # Per direction: two ResBlocks and attention at the last level, the 3×3 convolution between
        # the map and the columns, and two convolutions over columns.
        last = 4 * stride + attention + 3 * stride + 5 * filtered(levels[-1])
        filters = sum(low_pass(level, below) for level, below in itertools.pairwise(levels))
        downs = sum(level.pixels for level in levels[:-1]) + filters + filtered(levels[-1])
        ups = sum(level.pixels for level in levels[1:]) + filters + filtered(levels[0])
        # The 3×3 convolution at the first level's resolution, or three of them at the image's.
        first = self.patch_size
        final = self.patch_size if self.refine_channels is None else 3
        encoder = first + n * sum(map(block, levels)) + downs + last
        decoder = final + (n + 1) * sum(map(block, levels)) + ups + last
        return -(-max(encoder, decoder) // stride)
