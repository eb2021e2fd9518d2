"""The first non-finite value of a generator's training step is found, and named by its module."""

import jax
import numpy as np
import pytest

from eqjax.training import nan_report, optim


@pytest.mark.slow
def test_the_first_nonfinite_module_of_the_generator_is_named():
    from eqjax.generator import Generator

    generator = Generator(width=8, depth=3, num_heads=2, latent_dim=4, num_classes=2, num_cond_tokens=1, flow_width=8,
                          flow_depth=1)  # fmt: skip
    params = jax.jit(generator.init_params)(jax.random.key(0))
    latents, labels, key = np.ones((2, 3, 4), np.float32), np.array([0, 1]), jax.random.key(1)

    def first(params, latents=latents):
        return nan_report.first_nonfinite_module(generator, params, lambda batch, key: batch, (latents, labels), key)

    kernel = params["blocks"]["mlp_out"]["kernel"]
    huge = {**params, "blocks": {**params["blocks"], "mlp_out": {**params["blocks"]["mlp_out"], "kernel": kernel}}}
    huge["blocks"]["mlp_out"]["kernel"] = kernel.at[1].set(3e38)
    assert first(huge) == "output of blocks/mlp_out, layer 1"
    huge["blocks"]["mlp_out"]["kernel"] = kernel.at[2, 0, 0].set(np.nan)
    assert first(huge) == "parameter blocks/mlp_out/kernel, layer 2"
    assert first(params, latents * np.inf).startswith("latents")
    head = params["flow_head"]
    kernel = jax.numpy.full_like(head["input_proj"]["kernel"], 3e38)
    huge = {**params, "flow_head": {**head, "input_proj": {"kernel": kernel, "bias": head["input_proj"]["bias"]}}}
    assert first(huge) == "output of flow_head/input_proj"
    huge["flow_head"] = {**head, "output_proj": {**head["output_proj"], "bias": jax.numpy.full(4, 1e20)}}
    assert first(huge).startswith("the loss itself")


def test_nonfinite_modules_are_sorted_in_the_order_of_the_forward_pass():
    names = ["input_proj", "time_in", "blocks_2/norm", "blocks_2", "blocks_10/mlp_out", "final_norm", "output_proj"]
    tree = {f"flow_head/{name}": np.float32(np.inf) for name in names} | {"flow_head": np.float32(np.nan)}
    tree |= {"latent_proj": np.float32(1), "output_norm": np.float32(np.nan)}
    assert nan_report._bad(tree) == ["output_norm", *(f"flow_head/{name}" for name in names), "flow_head"]


def test_an_accumulated_step_is_repeated_by_microbatches(monkeypatch):
    generator, key, seen = object(), jax.random.key(3), []

    def compute(carry, rows, key):
        del carry
        draw = jax.random.uniform(key)
        return (rows["x"].sum(), draw), None

    def look(generator, params, encode, rows, key):
        seen.append(compute(None, rows, key)[0])
        return f"part {len(seen)}" if len(seen) == 3 else None

    monkeypatch.setattr(nan_report, "_first_bad_of_part", look)
    batch = {"x": np.arange(12.0) ** 2}
    assert nan_report.first_nonfinite_module(generator, {}, None, batch, key, parts=3) == "part 3"
    (total, draw), _ = optim.accumulate_gradients(compute, batch, key, 3)
    np.testing.assert_allclose([sum(x) / 3 for x in zip(*seen, strict=True)], [total, draw], rtol=1e-6)
    assert nan_report.first_nonfinite_module(generator, {}, None, batch, key).startswith(
        "none when the step is done again"
    )
    np.testing.assert_allclose(seen[3], compute(None, batch, key)[0])
