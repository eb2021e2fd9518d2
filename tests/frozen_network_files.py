"""Small files in the published formats of the frozen networks, and narrow networks that they fit."""

import dataclasses
import re

from eqjax import convert, nets
from eqjax.convert import torch_archive
from eqjax.nets import download
from tests import reference_weights

LPIPS = nets.LPIPS(widths=((2, 2), (2,), (2,), (3,), (3,)))
DINO = nets.ViT(width=8, depth=2, num_heads=2, patch_size=4, grid=2, intermediate_layers=(0, 2))
# Further arrays of the published files, which nothing uses.
UNUSED = {"lpips": {"classifier.6.bias": (10,)}, "dino": {"norm.weight": (8,), "norm.bias": (8,)}}


def narrow(monkeypatch):
    """Replaces the published networks by the narrow ones for one test."""
    for name, module in (("lpips", LPIPS), ("dino", DINO)):
        network = download.NETWORKS[name]
        plain = tuple(dataclasses.replace(file, sha256="") for file in network.files)
        monkeypatch.setitem(download.NETWORKS, name, dataclasses.replace(network, module=module, files=plain))


def arrays(name):
    """Returns {file name: {reference name: array}} of all files of a network."""
    network = download.find_network(name)
    shapes = convert.frozen_shapes(name, network.module) | UNUSED[name]
    state = reference_weights.state_dict(shapes)
    return {
        file.name: {key: array for key, array in state.items() if re.fullmatch(file.holds, key)}
        for file in network.files
    }


def write(name, folder):
    """Writes all files of a network and returns their paths."""
    for file, state in arrays(name).items():
        torch_archive.save(folder / file, state)
    return [folder / file for file in arrays(name)]
