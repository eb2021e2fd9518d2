"""What the page needs to know of a model, and small images of its classes."""

import concurrent.futures
import hashlib
import json
from typing import Any

from eqjax.fingerprint import fingerprint
from eqjax.serving.images import to_png
from eqjax.serving.steering import Steering

# Classes for which images are drawn; more are shown by their names.
MAX_THUMBNAILS = 64
# Strips from which the image of a class is taken.
_THUMBNAIL_CHOICES = 5
# What the page's sliders reach; the engine allows more.
_GUIDANCE, _TEMPERATURE = (1.0, 8.0), (0.2, 1.4)


def describe(engine: Any, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns JSON values for the page.

    Args:
      engine: a started `eqjax.serving.engine.Engine`.
      name: the model's name, to be shown.
      options: the options of the engine on which pixels depend.

    Returns:
      Names of the classes, sizes in pixels and columns, ranges and defaults of the steering, and `id`: two servers
      with the same one draw the same pixels for a link.
    """
    weights = {"tokenizer": engine.model.tokenizer_params, "generator": engine.model.generator_params}
    identity = json.dumps([fingerprint(weights), options], sort_keys=True)
    defaults = Steering(first_class=0, second_class=0)
    return {
        "name": name,
        "id": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "classes": list(engine.class_names),
        "height": engine.height,
        "column_width": engine.column_width,
        "strip_width": engine.strip_width,
        "lookahead_columns": engine.lookahead_columns,
        "max_sessions": engine.max_sessions,
        "guidance_scale": {"least": _GUIDANCE[0], "most": _GUIDANCE[1], "default": defaults.guidance_scale},
        "temperature": {"least": _TEMPERATURE[0], "most": _TEMPERATURE[1], "default": defaults.temperature},
    }


def draw_thumbnails(engine: Any) -> list[bytes]:
    """Returns a PNG file for every class, drawn by the engine; nothing where there are too many classes.

    Args:
      engine: a started `eqjax.serving.engine.Engine`.
    """
    num_classes = len(engine.class_names)
    if num_classes > MAX_THUMBNAILS:
        return []
    # As many at a time as are drawn in one step.
    with concurrent.futures.ThreadPoolExecutor(min(num_classes, engine.max_sessions)) as pool:
        return list(pool.map(lambda label: _draw_thumbnail(engine, label), range(num_classes)))


def _draw_thumbnail(engine: Any, label: int) -> bytes:
    """Returns the strip of most contrast among the first ones, as another may show sky alone.

    The very first is left out: the first columns of an image know nothing of others.
    """
    session, steering = engine.open(seed=label).id, Steering(first_class=label, second_class=label)
    try:
        strips = [engine.strip(session, "right", index, steering) for index in range(1 + _THUMBNAIL_CHOICES)]
    finally:
        engine.drop(session)
    strip = max(strips[1:], key=lambda strip: strip.std((0, 1)).mean())
    return to_png(strip[:, : min(strip.shape[1], 2 * strip.shape[0])])
