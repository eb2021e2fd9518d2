"""The sampling command: pictures, panoramas that go on, photographs, GIFs, and its errors."""

from absl import flags
import numpy as np
from PIL import Image
import pytest

from eqjax import pretrained
from launch import sample
from tests.sampling.models import model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    m = model(True)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    modules = {"tokenizer": m.tokenizer, "generator": m.generator}
    params = {"tokenizer": m.tokenizer_params, "generator": m.generator_params}
    pretrained.save(path, pretrained.Weights(modules, params, m.latent_scale, m.class_names))
    return str(path)


@pytest.fixture(name="command")
def _command(weights, tmp_path):
    def command(*, written="out.png", **options):
        output = tmp_path / "out.png"
        defaults = dict(weights=weights, output=output, num_flow_steps=2, solver="adams_bashforth")
        values = flags.FlagValues()
        sample.define_flags(values)
        values(["sample", *(f"--{name}={value}" for name, value in {**defaults, **options}.items())])
        sample.run(values)
        return np.asarray(Image.open(tmp_path / written))

    return command


def test_grid_of_classes_and_seeds(command):
    out = command(classes="cat,2", seeds="0,5", columns=4)
    assert out.shape == (2 * 16 + 2, 2 * 8 + 2, 3)
    np.testing.assert_array_equal(out, command(classes="cat,2", seeds="0,5", columns=4))


def test_panorama_with_classes_and_gif(command, tmp_path):
    out = command(classes="cat:20,dog", transition=4, columns=50, gif=True, gif_pixels=6)
    assert out.shape == (16, 100, 3)
    with Image.open(tmp_path / "out.gif") as gif:
        assert (gif.size, gif.n_frames) == ((64, 16), (100 - 64) // 6 + 1)


def test_a_panorama_goes_on(command, tmp_path):
    options = dict(classes="cat", columns=32, state=tmp_path / "state.npz")
    parts = [command(**options, written="out-000000.png"), command(**options, written="out-000032.png")]
    once = command(classes="cat", columns=64, state=tmp_path / "other.npz", written="out-000000.png")
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), once)


def test_photograph(command, tmp_path):
    picture = tmp_path / "photo.png"
    Image.fromarray(np.full((32, 50, 3), 90, np.uint8)).save(picture)
    out = command(classes="cat", photograph=picture, left=2, right=3, resize=True)
    assert out.shape == (16, 24 + 10, 3) and (out[:, 6:26] == 90).all()
    with pytest.raises(ValueError, match=r"image height 32 does not fit .*\(--resize\)"):
        command(classes="cat", photograph=picture, right=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes="cat:x"), "'cat:x' is neither name nor name:columns"),
        (dict(classes="cow"), r"classes \['cow'\] are not among"),
        (dict(classes="cat:3", columns=5), "covers columns 0 … 2, and the picture has 5 columns"),
        (dict(classes="cat:3,dog:0"), "needs at least 1"),
        (dict(classes="cat", num_flow_steps=0), "num_flow_steps=0 must be ≥ 1"),
    ],
)
def test_errors(command, options, message):
    with pytest.raises(ValueError, match=message):
        command(**options)
