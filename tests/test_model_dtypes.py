"""What a model computes in: the type of its modules, and the precision of products in every entry point."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqjax
from eqjax import evaluation
from eqjax.evaluation import ImageSet
from eqjax.module_fields import PRECISION
from tests.sampling.small_models import local_model

OPTIONS = {"num_flow_steps": 2, "guidance_scale": 2.0}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), np.uint8)


def replaced(**changes):
    return dataclasses.replace(local_model(), **changes)


def draw(model):
    return np.asarray(model.sample([0, "dog"], num_columns=6, seed=4, **OPTIONS)).astype(float)


@pytest.fixture(name="used")
def _used(monkeypatch):
    """The precisions in which products and convolutions are traced, a set that fills up."""
    used: set[str] = set()
    config: Any = jax.config
    local_model()  # Its parameters are made before anything is recorded.
    jax.clear_caches()  # Else programs of other tests would be found and nothing be traced.

    def recorded(function):
        def record(*args, **kwargs):
            used.add(config.jax_default_matmul_precision)
            return function(*args, **kwargs)

        return record

    for name in ("dot_general", "conv_general_dilated"):
        monkeypatch.setattr(jax.lax, name, recorded(getattr(jax.lax, name)))
    yield used
    jax.clear_caches()


def evaluate_generation(model, folder):
    options = evaluation.GenerationOptions(num_columns=3, num_flow_steps=1)
    evaluator = evaluation.GenerationEvaluator(model, options, 3, per_device_batch_size=1)
    return evaluator.evaluate(model, folder)["protocol"]


def evaluate_reconstruction(model, folder):
    del folder
    return evaluation.evaluate_reconstruction(
        model, ImageSet(2, "test", lambda: iter([IMAGES])), per_device_batch_size=1
    )


@pytest.mark.parametrize(
    "compute",
    [
        lambda model, _: draw(model),
        lambda model, _: model.encode(IMAGES),
        lambda model, _: model.decode(np.zeros((1, 3, 4), np.float32)),
        lambda model, _: list(eqjax.panorama(model, "cat", num_columns=4, prefix=np.zeros((1, 2, 4)), **OPTIONS)),
        lambda model, _: eqjax.outpaint(model, IMAGES[0], "cat", left=2, right=2, **OPTIONS),
        evaluate_generation,
        evaluate_reconstruction,
    ],
    ids=["sample", "encode", "decode", "panorama", "outpaint", "generation", "reconstruction"],
)
def test_every_entry_point_computes_in_the_precision_of_the_model(used, tmp_path, compute):
    with jax.default_matmul_precision("bfloat16"):  # The model's own one wins.
        compute(replaced(precision="tf32"), tmp_path)
    assert used == {"tensorfloat32"}


def test_a_model_computes_in_float32_unless_told_otherwise(used):
    with jax.default_matmul_precision("bfloat16"):
        local_model().encode(IMAGES)
    assert used == {"highest"}


def test_precisions_are_equal_on_a_cpu():
    exact, *others = [draw(replaced(precision=precision)) for precision in PRECISION.choices]
    assert all((exact == other).all() for other in others)


def test_an_evaluation_records_type_and_precision(tmp_path):
    model = dataclasses.replace(local_model().astype("bfloat16"), precision="tf32")
    protocol = evaluate_generation(model, tmp_path)
    assert (protocol["dtype"], protocol["precision"]) == ("bfloat16", "tf32")
    with pytest.raises(ValueError, match=r"images of another protocol(.|\n)*precision: folder 'tf32', now 'highest'"):
        evaluate_generation(dataclasses.replace(model, precision="highest"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_a_cast_model_computes_everything_in_its_type_nearly_as_before(dtype):
    model = local_model()
    cast = model.astype(dtype)
    for name in ("tokenizer", "generator"):
        module, params = getattr(cast, name), getattr(cast, f"{name}_params")
        kinds = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        kept = {name for name, kind in kinds.items() if kind == jnp.float32}
        assert module.dtype == jnp.dtype(dtype) and len(kinds) > len(kept) > 0
        assert all("norm" in name or "embedding" in name or "cond_positions" in name for name in kept), kept
    assert cast.encode(IMAGES).dtype == jnp.float32
    np.testing.assert_allclose(cast.encode(IMAGES), model.encode(IMAGES), atol=0.05)
    difference = np.abs(draw(cast) - draw(model))
    assert 0 < difference.mean() < 4
    columns = list(eqjax.panorama(cast, "cat", num_columns=4, prefix=np.zeros((1, 2, 4)), **OPTIONS))
    assert sum(strip.shape[1] for strip in columns) == 8
    assert eqjax.outpaint(cast, IMAGES[0], "cat", right=2, **OPTIONS).shape == (16, 16, 3)


def test_a_model_cast_to_the_type_it_has_is_the_same():
    model = local_model().astype("float32")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))
    np.testing.assert_array_equal(draw(model), draw(local_model()))


def test_half_a_model_can_be_cast():
    model = replaced(generator=None, generator_params={}).astype("bfloat16")
    assert model.generator is None and model.require("tokenizer").dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["float64", "int8", "half-ish", 3, [], object()])
def test_other_types_are_refused(dtype):
    message = "dtype=.* must be one of 'float32', 'bfloat16', 'float16'"
    with pytest.raises((ValueError, TypeError), match=message):
        local_model().astype(dtype)
    with pytest.raises((ValueError, TypeError), match=message):
        eqjax.load_pretrained("there is no such file", dtype=dtype)


def test_no_type_is_refused_where_one_is_needed():
    with pytest.raises(TypeError, match="dtype=None must be one of 'float32'"):
        local_model().astype(None)


@pytest.mark.parametrize("precision", ["float32", "", None, 1, []])
def test_other_precisions_are_refused(precision):
    message = "precision=.* must be one of 'highest', 'tf32', 'bfloat16'"
    with pytest.raises((ValueError, TypeError), match=message):
        eqjax.load_pretrained("there is no such file", precision=precision)
    if isinstance(precision, str):
        with pytest.raises(ValueError, match=message):
            replaced(precision=precision).encode(IMAGES)
