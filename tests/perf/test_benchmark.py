"""The benchmark on tiny models: its rows, its table, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.perf import benchmark, flops
from eqjax.perf.benchmark import BenchmarkOptions
from eqjax.sampling.options import SamplingOptions
from eqjax.training.generator import GeneratorStep
from tests import frozen_network_files
from tests.sampling import small_models

SAMPLING = SamplingOptions(guidance_scale=7.0, num_flow_steps=2)


@pytest.fixture(name="model")
def _model():
    model: Any = small_models.local_model()
    params = jax.tree.map(jnp.asarray, (model.tokenizer_params, model.generator_params))
    return model.replace(tokenizer_params=params[0], generator_params=params[1])


def test_sampling_has_rows_for_all_parts_with_consistent_rates(model, monkeypatch):
    monkeypatch.setattr(benchmark, "matmul_peak", lambda _: 1e12)
    monkeypatch.setattr(benchmark, "make_model", lambda *_: model)
    options = BenchmarkOptions(num_columns=3, sampling=SAMPLING, repeats=1)
    results = benchmark.run_benchmark("sampling", options)
    assert [row["part"] for row in results["rows"]] == ["transformer", "flow head", "sampling", "decoder"]
    for row in results["rows"]:
        assert row["seconds_per_column"] > 0 and 0 < row["fraction_of_peak"] < 1
        np.testing.assert_allclose(row["images_per_second"] * row["seconds_per_column"] * 3, 1, rtol=1e-6)
    assert results["num_flow_steps"] == 2 and results["guidance_scale"] == 7
    line, empty, *table = benchmark.format_results(results).splitlines()
    assert "kind=sampling" in line and not empty and len(table) == 2 + 4


def test_floor_runs_nothing_and_has_no_times(model, monkeypatch):
    monkeypatch.setattr(benchmark, "build_modules", lambda *_: (model.tokenizer, model.generator))
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("a function was timed"))
    results = benchmark.run_benchmark("floor", BenchmarkOptions(num_columns=3, sampling=SAMPLING))
    assert [row["part"] for row in results["rows"]] == ["condition", "transformer", "flow head", "decoder"]
    assert all(row.keys() == {"part", "gflop", "gigabytes"} and row["gflop"] > 0 for row in results["rows"][:-1])
    decode, tokenizer = results["rows"][-1], model.tokenizer
    assert decode.keys() == {"part", "gflop"}  # Counted by our own tracer, as compilers leave out library calls.
    latents = jax.ShapeDtypeStruct((1, 3, tokenizer.embed_dim), "float32")
    params = jax.eval_shape(tokenizer.init_params, jax.random.key(0))
    assert decode["gflop"] == flops.count(benchmark._decode(tokenizer), params, latents) / 1e9
    assert results["peak_tflops"] is None


def test_training_counts_the_encoder_only_if_the_step_reads_images(model, monkeypatch):
    """The step is one product instead of a generator's, behind the encoder."""
    monkeypatch.setattr(benchmark, "build_modules", lambda *_: (model.tokenizer, model.generator))
    weights = np.ones((model.generator.latent_dim, 64), np.float32)

    class OneProduct(GeneratorStep):
        def __call__(self, encoder_params: Any, state: Any, batch: Any, key: Any) -> Any:
            latents, _ = self.encode(encoder_params, batch, key)
            return state.replace(step=state.step + 1), {"loss": jnp.mean(latents @ weights)}

    monkeypatch.setattr(benchmark, "GeneratorStep", OneProduct)
    options = BenchmarkOptions(config="configs/photos_generator.py:tiny", batch_size=2, num_columns=3, repeats=1)
    cached, images = benchmark.measure_training(options)
    assert (cached.part, images.part) == ("step from cached latents", "step from images")
    assert cached.flops == 2 * 2 * 3 * weights.size

    def encode(images):
        return model.tokenizer.apply({"params": model.tokenizer_params}, images, method="encode").mean

    shape = (2, model.tokenizer.resolution, 3 * model.tokenizer.column_width, 3)
    assert images.flops == cached.flops + flops.count(encode, jax.ShapeDtypeStruct(shape, "float32"))
    assert cached.timing is not None and cached.timing.seconds > 0 and cached.timing.compile_seconds > 0


def test_the_peak_is_that_of_random_numbers(monkeypatch):
    given = []

    def measure(function, a, b, **_):
        given.extend([np.asarray(a), np.asarray(function(a[:8, :8], b[:8, :8]))])
        return benchmark.Timing(2.0, 0.0, 0)

    monkeypatch.setattr(benchmark, "measure", measure)
    assert benchmark.matmul_peak("float32") == 2 * 2048**3 / 2.0
    numbers, product = given
    assert len(np.unique(numbers)) > 0.9 * numbers.size
    np.testing.assert_allclose(product, numbers[:8, :8] @ numbers[:8, :8], rtol=1e-5)


@pytest.mark.slow
def test_a_tokenizer_step_is_measured_without_the_files_of_its_frozen_networks(monkeypatch, tmp_path):
    frozen_network_files.narrow(monkeypatch)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    config = benchmark.read_config("imagenet_tokenizer:tiny")
    config.objective.perceptual_weight = 1.0
    monkeypatch.setattr(benchmark, "read_config", lambda _: config)
    seen = {}

    def measure_step(part, step, *_):
        seen.update(step.args[0])
        return benchmark.Measurement(part, 0.0, None, None)

    monkeypatch.setattr(benchmark, "_measure_step", measure_step)
    (found,) = benchmark.measure_training(BenchmarkOptions(batch_size=2, num_columns=4))
    assert found.part == "step"
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(seen["lpips"])])
    assert 0.01 < np.std(values) < 0.03


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("flying", "S", r"'flying' is not one of \('sampling', 'decoding', 'training', 'floor'\)"),
        ("training", "XL", "none of the sizes S, B, L, H, and there is no file XL"),
        ("floor", "configs/photos_tokenizer.py", "holds no generator"),
        (
            "training",
            "photos_generator:tiny",
            "takes latents of 8 channels, the tokenizer has 256; set tokenizer_weights",
        ),
    ],
)
def test_unknown_kinds_and_configs_are_refused(kind, config, message):
    with pytest.raises(ValueError, match=message):
        benchmark.run_benchmark(kind, BenchmarkOptions(config=config))
