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
    config.data.update(source="photos", photo_classes=PHOTO_CLASSES, height=32, width=32, resize=32, num_workers=0)
    config.update(batch_size=8, total_steps=20, total_epochs=None, eval_images=16)
    config.update(log_every=5, eval_every=20, image_every=20, checkpoint_every=10, keep_every=None)
    config.sampling.update(num_columns=4, num_flow_steps=4)
    config.optimizer.update(lr_reference_batch_size=None, warmup_epochs=None, warmup_steps=5.0)
