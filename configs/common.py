"""Variants of a configuration: what follows the colon in `--config=configs/name.py:variant`."""

# Of the twelve built-in photographs, those with something to recognize at 64 pixels.
PHOTO_CLASSES = ("brick", "galaxies", "tissue", "retina", "coffee", "cat", "rocket", "flower")


def parse_variant(text, **defaults):
    """Parses "name", "name=value" or several of them, joined by commas, strictly.

    Args:
      text: what stands after the colon, or None.
      **defaults: the known names; a boolean may stand alone ("tiny"), others need a value, which
        takes the type of the default.

    Returns:
      A dict of all names.

    Raises:
      ValueError: an unknown name or a value of another type; the known ones are listed.
    """
    values = dict(defaults)
    for item in filter(None, (text or "").split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown variant {name!r} in ':{text}'; known: {defaults}.")
        kind = type(defaults[name])
        try:
            values[name] = {"": True, "true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"variant {item!r} in ':{text}' needs a value of type {kind.__name__}.") from error
    return values


def shrink_generator(config):
    """Turns a generator's configuration into a few steps of a very small model on built-in photographs.

    Its sizes are those of tokenizer_imagenet256.py:tiny.
    """
    config.generator.update(
        width=16,
        depth=2,
        num_heads=2,
        latent_dim=16,
        num_classes=len(PHOTO_CLASSES),
        num_cond_tokens=2,
        window_size=3,
        flow_width=16,
        flow_depth=1,
    )
    config.data.update(source="photos", height=32, width=32, resize=32, num_workers=0)
    config.data.photo_classes = PHOTO_CLASSES
    config.batch_size, config.total_steps, config.total_epochs, config.eval_images = 8, 20, 0.0, 16
    config.log_every, config.eval_every, config.image_every, config.checkpoint_every = 5, 20, 20, 10
    config.keep_every, config.sample_columns, config.sample_flow_steps = 0, 4, 4
    config.optimizer.update(lr_reference_batch_size=0, warmup_epochs=0.0, warmup_steps=5.0)
