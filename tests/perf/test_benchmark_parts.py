"""The parts of a benchmark on tiny models: their costs, what they run, what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.perf import benchmark_parts, flops
from eqjax.perf.benchmark_options import BenchmarkOptions
from eqjax.perf.timing import Timing
from eqjax.sampling.options import SamplingOptions
from eqjax.training.generator import GeneratorStep
from tests import frozen_network_files
from tests.sampling import small_models

SAMPLING = SamplingOptions(guidance_scale=7.0, num_flow_steps=2)
FLOOR = BenchmarkOptions(kind="floor", num_columns=3, sampling=SAMPLING)


@pytest.fixture(name="model")
def _model():
    model: Any = small_models.local_model()
    params = jax.tree.map(jnp.asarray, (model.tokenizer_params, model.generator_params))
    return model.replace(tokenizer_params=params[0], generator_params=params[1])


@pytest.fixture(name="texts")
def _texts(monkeypatch):
    """The lowered programs, which are not compiled."""
    texts: list[str] = []

    def measure(function, *args, **_):
        texts.append(jax.jit(function).lower(*args).as_text())
        return Timing(1.0, 1.0, 0)

    monkeypatch.setattr(benchmark_parts, "measure", measure)
    return texts


def test_every_part_of_sampling_computes_in_the_precision(model, texts):
    options = BenchmarkOptions(num_columns=3, sampling=SAMPLING, repeats=1, precision="tf32")
    for part in options.part_names():
        assert benchmark_parts.measure_part(options, part, model).part == part
    assert len(texts) == 4 and all("[HIGH, HIGH]" in text and "[HIGHEST" not in text for text in texts)


def test_the_floor_runs_nothing(model, monkeypatch):
    monkeypatch.setattr(benchmark_parts, "build_modules", lambda *_: (model.tokenizer, model.generator))
    monkeypatch.setattr(benchmark_parts, "measure", lambda *_, **__: pytest.fail("a function was timed"))
    *closed, decoder = [benchmark_parts.measure_part(FLOOR, part, None) for part in FLOOR.part_names()]
    assert all(found.timing is None and found.flops > 0 and found.bytes for found in closed)
    assert decoder.bytes is None  # Counted by our own tracer, as compilers leave out library calls.
    tokenizer = model.tokenizer
    latents = jax.ShapeDtypeStruct((1, 3, tokenizer.embed_dim), "float32")
    params = jax.eval_shape(tokenizer.init_params, jax.random.key(0))
    assert decoder.flops == flops.count(benchmark_parts._decode(tokenizer), params, latents)


def test_the_floor_of_a_model_with_weights_is_that_of_its_modules(model):
    found = [benchmark_parts.measure_part(FLOOR, part, model).flops for part in FLOOR.part_names()]
    assert all(value > 0 for value in found)


@pytest.mark.slow
def test_training_counts_the_encoder_only_if_the_step_reads_images(model, monkeypatch):
    """The step is one product instead of a generator's, behind the encoder."""
    monkeypatch.setattr(benchmark_parts, "build_modules", lambda *_: (model.tokenizer, model.generator))
    weights = np.ones((model.generator.latent_dim, 64), np.float32)

    class OneProduct(GeneratorStep):
        def __call__(self, encoder_params: Any, state: Any, batch: Any, key: Any) -> Any:
            latents, _ = self.encode(encoder_params, batch, key)
            return state.replace(step=state.step + 1), {"loss": jnp.mean(latents @ weights)}

    monkeypatch.setattr(benchmark_parts, "GeneratorStep", OneProduct)
    options = BenchmarkOptions(
        kind="training",
        config="configs/photos_generator.py:tiny",
        batch_size=2,
        num_columns=3,
        repeats=1,
        num_kernels=1,
    )
    cached, images = (benchmark_parts.measure_part(options, part, None) for part in options.part_names())
    assert (cached.part, images.part) == ("step from cached latents", "step from images")
    assert cached.flops == 2 * 2 * 3 * weights.size

    def encode(images):
        return model.tokenizer.apply({"params": model.tokenizer_params}, images, method="encode").mean

    shape = (2, model.tokenizer.resolution, 3 * model.tokenizer.column_width, 3)
    assert images.flops == cached.flops + flops.count(encode, jax.ShapeDtypeStruct(shape, "float32"))
    assert cached.timing is not None and cached.timing.seconds > 0 and cached.timing.compile_seconds > 0
    assert len(cached.timing.kernels) == 1


def test_fields_and_precision_reach_the_step(monkeypatch):
    seen = []

    def measure_step(options, part, step, plain_step, *_):
        seen.append((step.func.generator, plain_step.func.generator, step.func.dropout_rng))
        return benchmark_parts.Measurement(part, 1.0 * options.batch_size, None, None)

    monkeypatch.setattr(benchmark_parts, "_measure_step", measure_step)
    options = BenchmarkOptions(
        kind="training",
        config="imagenet_generator:tiny",
        dtype="bfloat16",
        fields=("generator.remat=full", "dropout_rng=rbg"),
    )
    monkeypatch.setattr(benchmark_parts, "random_params", lambda _: {"w": jnp.ones(1)})
    monkeypatch.setattr(benchmark_parts, "_random_images", lambda *_: {"label": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match="takes latents of 16 channels, the tokenizer has 256; set tokenizer_weights"):
        benchmark_parts.measure_part(options, "step from images", None)
    tokenizer, generator = benchmark_parts.build_modules(options.config, "bfloat16", options.fields)
    fitting = tokenizer.clone(embed_dim=generator.latent_dim)
    monkeypatch.setattr(benchmark_parts, "build_modules", lambda *_: (fitting, generator))
    benchmark_parts.measure_part(options, "step from images", None)
    ((module, plain, rng),) = seen
    assert (module.remat, plain.remat, str(jnp.dtype(module.dtype)), rng) == ("full", "none", "bfloat16", "rbg")


def test_the_step_is_compiled_in_the_precision(monkeypatch):
    asked = []

    def compile_step(*args, **options):
        asked.append((args[5], options["profiled"]))
        raise RuntimeError("that is all")

    monkeypatch.setattr(benchmark_parts.loop, "compile_step", compile_step)
    step = jax.tree_util.Partial(lambda state, *_: (state, {}))
    options = BenchmarkOptions(kind="training", precision="tf32", num_kernels=3)
    with pytest.raises(RuntimeError, match="that is all"):
        benchmark_parts._measure_step(options, "step", step, step, (), {"w": jnp.ones(2)}, {"x": np.ones((1, 2))})
    assert asked == [("tf32", True)]


@pytest.mark.slow
def test_a_tokenizer_step_is_measured_without_the_files_of_its_frozen_networks(monkeypatch, tmp_path):
    frozen_network_files.narrow(monkeypatch)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    config = benchmark_parts.read_config("imagenet_tokenizer:tiny")
    config.objective.perceptual_weight = 1.0
    monkeypatch.setattr(benchmark_parts, "read_config", lambda *_: config)
    seen = {}

    def measure_step(_, part, step, *__):
        seen.update(step.args[0])
        return benchmark_parts.Measurement(part, 0.0, None, None)

    monkeypatch.setattr(benchmark_parts, "_measure_step", measure_step)
    options = BenchmarkOptions(kind="training", batch_size=2, num_columns=4)
    found = benchmark_parts.measure_part(options, "step", None)
    assert found.part == "step"
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(seen["lpips"])])
    assert 0.01 < np.std(values) < 0.03
