"""The networks of published figures, as metrics take them: Inception for FID and its family, LPIPS."""

from eqjax import nets
from eqjax.evaluation.features import Network


def inception(folder=None):
    """FID's Inception network, a `Network`.

    Args:
      folder: where its weights lie; None: `eqjax.nets.weights_folder()`.

    Raises:
      FileNotFoundError: they are not there; the message says where they come from.
      FrozenWeightsError: the file is damaged.
    """
    module, params = nets.load("inception", folder)
    return from_module(module, params)


def from_module(module, params, weights="pt_inception-2015-12-05"):
    """A `Network` of an `eqjax.nets.Inception` with any weights; `weights` names them in the protocol."""

    def apply(params, images):
        found = nets.inception_features(params, images, module)
        return {"pool": found.pool, "logits": found.logits, "spatial": found.spatial}

    return Network(apply, params, {"network": weights, "resize": "bilinear, 299, as TensorFlow 1"})


def lpips(folder=None):
    """(parameters, traced function) of LPIPS for `evaluate_reconstruction`; raises as `inception`."""
    module, params = nets.load("lpips", folder)
    return params, lambda params, x, y: nets.lpips(params, x, y, module)
