"""Lowered programs: their arguments, FLOPs and batches, for devices of this machine; nothing is compiled."""

from typing import Any

import jax
import pytest

from configs import imagenet_tokenizer
from eqjax.perf import flops, hlo, programs
from eqjax.perf.benchmark_models import build_modules
from eqjax.perf.sampling_cost import sampling_cost
from eqjax.sampling.options import SamplingOptions
from tests import frozen_network_files

CONFIG = "photos_generator:tiny"


def lower_sampling(devices=1, **options):
    return programs.lower_sampling(
        CONFIG, batch_size=2, num_columns=3, dtype="bfloat16", sampling=SamplingOptions(num_flow_steps=4, **options),
        devices=jax.devices()[:devices],
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_sampling_is_one_program_with_the_products_of_the_closed_form(scale):
    lowered = lower_sampling(guidance_scale=scale)
    _, generator = build_modules(CONFIG, "bfloat16")
    parts = sampling_cost(generator, batch_size=2, num_columns=3, num_evaluations=4, guided=scale != 1.0)
    assert lowered.flops == pytest.approx(sum(part.flops for part in parts.values()), rel=0.1)
    assert "bf16" in lowered.program.as_text() and lowered.state is None


def test_sampling_on_a_mesh_is_the_same_work_and_sends_nothing():
    alone, spread = lower_sampling(guidance_scale=7.0), lower_sampling(2, guidance_scale=7.0)
    assert spread.flops == alone.flops
    text = spread.program.compile().as_text()
    assert "num_partitions=2" in text and not hlo.collectives(text)
    with pytest.raises(ValueError, match="a global batch of 2 does not divide among 4 devices"):
        lower_sampling(4)


def test_decoding_has_the_products_of_the_decoder():
    lowered = programs.lower_decoding("S", batch_size=2, num_columns=1, dtype="bfloat16", device=jax.devices()[0])
    tokenizer, _ = build_modules("S", "bfloat16")
    params = jax.eval_shape(tokenizer.init_params, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((2, 1, tokenizer.embed_dim), "float32")

    def decode(params: Any, latents: Any) -> Any:
        decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
        return decoded.images

    assert lowered.flops == flops.count(decode, params, latents)


@pytest.mark.slow
def test_a_tokenizer_step_needs_no_files_of_its_frozen_networks(monkeypatch, tmp_path):
    frozen_network_files.narrow(monkeypatch)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    config = imagenet_tokenizer.get_config("tiny")
    config.batch_size, config.mesh, config.objective.perceptual_weight = 4, "data:4", 1.0
    lowered = programs.lower_tokenizer_step(config, jax.devices(), 4)
    assert lowered.frozen is not None and set(lowered.frozen) == {"lpips"}
    assert lowered.batch is not None and lowered.batch["image"].shape[:2] == (4, 32)
    config.objective.perceptual_weight = 0.0
    assert lowered.flops > programs.lower_tokenizer_step(config, jax.devices(), 4).flops > 0
