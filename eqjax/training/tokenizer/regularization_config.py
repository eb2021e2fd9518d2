"""The regularizers of a configuration: checks against each other, the tokenizer and the images, then the transforms."""

from collections.abc import Iterator
from fractions import Fraction

from eqjax.equivariance import (
    ColumnGeometry,
    Group,
    StereoWindows,
    flips,
    load_stereo_windows,
    make_action,
    product,
    scales,
    shifts,
    warps,
)
from eqjax.equivariance.actions import check_fit
from eqjax.tokenizer import Tokenizer
from eqjax.training.tokenizer.regularization import Regularization
from eqjax.typing import Config

_SECTION = "objective.equivariance"
# Below it, a network with four halvings, as LPIPS has, sees nothing.
_LEAST_LPIPS_WIDTH = 16


def make_regularization(config: Config, tokenizer: Tokenizer) -> tuple[Regularization | None, StereoWindows | None]:
    """Returns the regularizers of a configuration, or None if all are off, and the stereo windows that they need.

    Args:
      config: a resolved `tokenizer_config`, whose fields are in their ranges.
      tokenizer: the module.

    Raises:
      ValueError: fields contradict each other, or a transform does not fit the images.
      FileNotFoundError: the stereo pairs are missing.
      ModuleNotFoundError: scikit-image, whose pair is the default, is not installed.
    """
    options = config.objective.equivariance
    problems = [f"{_SECTION}.{problem}" for problem in _contradictions(config)]
    if problems:
        raise ValueError("\n".join(problems))
    if not (options.implicit_probability or options.explicit_weight or options.stereo_weight):
        return None, None
    boundary = "circular" if tokenizer.padding == "circular" else "crop"
    geometry = ColumnGeometry(tokenizer.column_width, tokenizer.resolution, boundary, options.interpolation)
    group = _group(config, geometry)
    if options.implicit_probability or options.explicit_weight:
        _check_widths(config, geometry, group)
    regularization = Regularization(
        geometry,
        group,
        tuple(options.transforms),
        seed=config.seed,
        implicit_probability=options.implicit_probability,
        explicit_weight=options.explicit_weight,
        start=options.start,
        soft_power=options.soft_power,
        collapse_threshold=options.collapse_threshold,
        stereo_weight=options.stereo_weight,
        stereo_windows=options.stereo_windows,
        stereo_temperature=options.stereo_temperature,
    )
    return regularization, _stereo_windows(config, geometry)


def _contradictions(config: Config) -> Iterator[str]:
    """Yields what is wrong with fields that do not fit each other, beginning with the name of one."""
    options = config.objective.equivariance
    explicit, stereo = options.explicit_weight, options.stereo_weight
    if explicit and not config.stage1_weights:
        yield (
            f"explicit_weight={explicit} is for fine-tuning: from scratch, explicit errors are least for latents that "
            "carry nothing. Set stage1_weights to a trained tokenizer, or use implicit_probability instead."
        )
    for name, weight in (("explicit_weight", explicit), ("stereo_weight", stereo)):
        if weight and config.freeze_encoder:
            yield f"{name}={weight} trains the encoder, and freeze_encoder=True keeps it: set one of them to off."
    kinds = list(options.transforms)
    if len(set(kinds)) < len(kinds):
        yield f"transforms={tuple(kinds)} names one kind twice; give each once."
    if options.soft_power is not None:
        if len(kinds) < 2:
            yield f"soft_power={options.soft_power} weighs kinds against each other; transforms={tuple(kinds)} has one."
        if not (options.implicit_probability or explicit):
            yield (
                f"soft_power={options.soft_power} weighs transforms, of which none is trained: set "
                "implicit_probability or explicit_weight."
            )
        if "scale" in kinds and all(Fraction(scale) == 1 for scale in options.scales if not scale.endswith("/0")):
            yield f"scales={tuple(options.scales)} has the identity alone, which has no error for soft_power to weigh."
    if options.implicit_probability == 1 and config.objective.semantic_weight:
        yield (
            "implicit_probability=1.0 leaves no step to the semantic term, which is on where images are not "
            "transformed: lower it, or set objective.semantic_weight=0."
        )


def _group(config: Config, geometry: ColumnGeometry) -> Group:
    """Returns the product of the kinds of transforms.

    Raises:
      ValueError: a scale is 0 or has the denominator 0.
    """
    options = config.objective.equivariance
    makers = {
        "scale": lambda: scales(*options.scales),
        "flip": flips,
        "shift": lambda: shifts(options.shift_columns * geometry.stride),
        "warp": lambda: warps(config.data.width, options.warp_knots, options.warp_strength),
    }
    try:
        return product(*(makers[kind]() for kind in options.transforms))
    except ValueError as error:
        raise ValueError(f"{_SECTION}.scales: {error}") from None


def _check_widths(config: Config, geometry: ColumnGeometry, group: Group) -> None:
    """Checks that every transform makes images that all terms can take.

    Raises:
      ValueError: one does not.
    """
    columns, objective = geometry.num_columns(config.data.width), config.objective
    for scale in group.scales:
        try:
            check_fit(geometry, make_action(scale=scale), columns)
        except ValueError as error:
            raise ValueError(f"{_SECTION}.scales: with data.width={config.data.width}, {error}") from None
    if group.max_shift >= config.data.width:
        raise ValueError(
            f"{_SECTION}.shift_columns={group.max_shift / geometry.stride:g} shifts images of {columns} columns out of "
            "themselves; lower it, or enlarge data.width."
        )
    if not objective.equivariance.implicit_probability:
        return
    width = int(min(group.scales) * config.data.width)
    needs = {"objective.perceptual_weight": _LEAST_LPIPS_WIDTH if objective.perceptual_weight else 0}
    if objective.adversarial_weight and config.discriminator.kind == "patch":
        needs["discriminator.num_layers"] = 2 ** (config.discriminator.num_layers + 1)
    for name, least in needs.items():
        if width < least:
            raise ValueError(
                f"{_SECTION}.scales: {min(group.scales)} makes images {width} pixels wide, and {name} needs at least "
                f"{least}: leave the smallest scales out, or enlarge data.width."
            )


def _stereo_windows(config: Config, geometry: ColumnGeometry) -> StereoWindows | None:
    options = config.objective.equivariance
    if not options.stereo_weight:
        return None
    try:
        return load_stereo_windows(
            options.stereo_pairs or None,
            height=geometry.height,
            stride=geometry.stride,
            columns=options.stereo_columns,
        )
    except ValueError as error:
        raise ValueError(f"{_SECTION}.stereo_weight={options.stereo_weight} finds no use: {error}") from error
