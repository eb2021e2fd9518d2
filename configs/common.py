"""Variants of a configuration: what follows the colon in `--config=configs/name.py:variant`."""

# Of the twelve built-in photographs, those with something to recognise at 64 pixels.
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
