"""The benchmark on a tiny model, and its closed forms against the compiler's count."""

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator
from eqjax.cli import benchmark
from eqjax.perf import flops, models, sampling_cost


def arguments(**options):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    values(["benchmark", *(f"--{name}={value}" for name, value in options.items())])
    return values


def test_published_operations():
    """An image of L with guidance and 100 steps takes about 727 GFLOP, 15 of them for what is computed once here."""
    _, generator = models.modules("L")
    costs = sampling_cost.sampling_cost(generator, batch=1, num_columns=16, evaluations=100)
    context = 16 * 99 * 2 * 2 * 1024 * 1280  # Projected per column, not per step.
    times = 16 * 100 * 2 * (256 + 1280) * 1280  # Embedded for one row, not for both.
    assert abs((sum(c.flops for c in costs.values()) + context + times) / 1e9 - 727) < 2


def test_flow_head_agrees_with_the_compiler():
    generator = Generator(
        width=64, depth=1, num_heads=2, latent_dim=32, num_classes=3, num_cond_tokens=2, flow_width=64, flow_depth=3
    )
    params = models.random_params(generator)
    contexts, z = jnp.ones((6, 64)), jnp.ones((6, 32))
    velocity = lambda z: generator.apply({"params": params}, z, jnp.ones(6), contexts, method="velocity")  # noqa: E731
    counted = sampling_cost.compiled_cost(velocity, z).flops
    time_embedding = 5 * 2 * (256 * 64 + 64 * 64)  # Of all six rows here, once in the sampler.
    expected = sampling_cost.sampling_cost(generator, batch=6, num_columns=1, evaluations=1, guided=False)[
        "flow head"
    ].flops
    assert abs(counted - time_embedding - expected) / expected < 0.15  # The compiler also counts norms and sums.


def test_table(monkeypatch):
    monkeypatch.setattr(benchmark, "matmul_peak", lambda dtype: 1e12)
    monkeypatch.setattr(models, "make_model", lambda config, dtype: tiny())
    results = benchmark.benchmark("sampling", arguments(columns=3, num_flow_steps=2, repeats=1))
    assert [row["part"] for row in results["rows"]] == ["transformer", "flow head", "sampling", "decoder"]
    for row in results["rows"]:
        assert row["seconds_per_column"] > 0 and 0 < row["share_of_peak"] < 1
        np.testing.assert_allclose(row["images_per_second"] * row["seconds_per_column"] * 3, 1, rtol=1e-6)
    assert len(benchmark.table(results).splitlines()) == 6


def tiny():
    from tests.sampling.small_models import model

    m = model(True)
    params = jax.tree.map(jnp.asarray, (m.tokenizer_params, m.generator_params))
    return m.replace(tokenizer_params=params[0], generator_params=params[1])


def test_training_steps(monkeypatch):
    """Steps of one product, instead of a generator's, behind the encoder."""
    model = tiny()
    monkeypatch.setattr(models, "modules", lambda config, dtype: (model.tokenizer, model.generator))
    weights = np.ones((model.generator.latent_dim, 64), np.float32)

    def make_steps(generator, optimizer, encode, config):
        def step(frozen, state, batch, key):
            drawn, _ = encode(frozen, batch, key)
            return state.replace(step=state.step + 1), {"loss": jnp.mean(drawn @ weights)}

        return step, step

    monkeypatch.setattr(benchmark.generator_training, "make_steps", make_steps)
    args = arguments(config="configs/photos_generator.py:tiny", batch=2, columns=3, repeats=1)
    (first, cached, timing), (second, pictures, _) = benchmark.training_rows(args)
    assert (first, second) == ("step from cached latents", "step from images")
    assert cached.flops == 2 * 2 * 3 * weights.size
    encode = lambda images: model.tokenizer.apply({"params": model.tokenizer_params}, images, method="encode").mean  # noqa: E731
    encoder = flops.count(encode, jnp.zeros((2, model.tokenizer.resolution, 3 * model.tokenizer.column_width, 3)))
    assert pictures.flops == cached.flops + encoder
    assert timing[0] > 0 and timing[1] > 0


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("flying", "S", r"'flying' is not one of \('sampling', 'decoding', 'training', 'floor'\)"),
        ("training", "XL", r"neither one of \['B', 'H', 'L', 'S'\] nor a configuration file"),
        ("floor", "configs/photos_tokenizer.py", "holds no generator"),
    ],
)
def test_errors(kind, config, message):
    with pytest.raises(ValueError, match=message):
        benchmark.benchmark(kind, arguments(config=config))
