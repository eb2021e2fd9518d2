"""The tokenizer against arrays recorded from the reference."""

import jax
import numpy as np
import pytest

from tests.golden_cases import relative_error, tokenizer_case


@pytest.mark.parametrize(
    ("name", "size"), [("tokenizer_tiny", "32x32"), ("tokenizer_tiny", "32x80"), ("tokenizer_anisotropic", "32x48")]
)
def test_encoding_and_decoding_equal_recorded_arrays(name, size):
    tokenizer, params, arrays = tokenizer_case(name)
    encode = jax.jit(lambda x: tokenizer.apply({"params": params}, x, method="encode"))
    decode = jax.jit(lambda x: tokenizer.apply({"params": params}, x, method="decode"))
    posterior = encode(arrays[f"{size}/images"])
    assert relative_error(posterior.mean, arrays[f"{size}/mean"]) < 1e-5
    assert relative_error(posterior.kl(), arrays[f"{size}/kl"]) < 1e-5
    decoded = decode(arrays[f"{size}/latents"])
    assert relative_error(decoded.images, arrays[f"{size}/decoded"]) < 1e-5
    assert relative_error(decoded.semantic, arrays[f"{size}/semantic"]) < 1e-5
    again = decode(posterior.mode()).images
    assert relative_error(again, arrays[f"{size}/reconstruction"]) < 1e-5


def test_bfloat16_is_close_and_keeps_float32_outputs():
    tokenizer, params, arrays = tokenizer_case("tokenizer_anisotropic")
    half = tokenizer.clone(dtype=jax.numpy.bfloat16)
    posterior = jax.jit(lambda x: half.apply({"params": params}, x, method="encode"))(arrays["32x48/images"])
    error = relative_error(posterior.mean, arrays["32x48/mean"])
    assert 1e-5 < error < 0.05  # Eight bits of mantissa through some twenty layers; 0 would mean float32 ran.
    assert posterior.mean.dtype == np.float32
