"""The cost model of a training step: a tiny plan from end to end, what counts, what is refused."""

import dataclasses
from typing import Any

import jax
import pytest

from configs import imagenet_generator, photos_generator, photos_tokenizer
from eqjax import loading, pretrained
from eqjax.perf import chips, gpu_compiler, hlo, programs, step_plan


def tiny_plan(**changes):
    config = imagenet_generator.get_config("tiny")
    config.update(changes)
    return step_plan.plan_step(config, num_chips=4, num_columns=4)


def by_hand(**changes):
    """A plan with round numbers: one second of each term on the chip `unit`."""
    values: dict[str, Any] = dict(
        compiler="compiler by hand", model="by hand", num_chips=2, mesh="data:2", batch_size=4, num_parameters=1,
        flops=2e12, float32=False, precision="highest",
        memory={"parameters": 100, "EMA weights": 100, "frozen encoder": 7, "optimizer state": 200, "batch": 3,
                "activations and gradients": 100},
        traffic=[hlo.Collective("all-reduce", 2, 2, 1, 8.0), hlo.Collective("all-reduce", 2, 9, 1, 4.0)],
    )  # fmt: skip
    return step_plan.StepPlan(**(values | changes))


@pytest.fixture(name="unit")
def _unit(monkeypatch):
    """A chip with 1e12 FLOP/s, 1000 bytes/s of memory, 10 bytes/s inside its node of 8 and 5 beyond."""
    chip = dataclasses.replace(
        chips.CHIPS["v4"], name="unit", peak_flops=1e12, memory=500, memory_bandwidth=1000, node_size=8,
        link_bandwidth=10, network_bandwidth=5,
    )  # fmt: skip
    monkeypatch.setitem(chips.CHIPS, "unit", chip)
    return chip


def test_estimate_has_three_terms_and_takes_the_longest_or_their_sum(unit):
    found = step_plan.estimate(by_hand(), unit.name)
    # The state and the activations move twice; one group spans more than a node.
    assert found.terms == pytest.approx({"compute": 1.0, "memory": 2 * 500 / 1000, "network": 8 / 10 + 4 / 5})
    assert found.bound == "network"
    assert found.seconds == pytest.approx((1.6, 3.6))
    assert found.utilization == pytest.approx((1 / 1.6, 1 / 3.6))


def test_memory_counts_everything_that_a_device_holds(unit):
    found = step_plan.estimate(by_hand(), unit.name)
    assert found.memory_fraction == pytest.approx(510 / 500)
    assert not found.fits


@pytest.mark.parametrize(("precision", "seconds"), [("highest", 6.0), ("tf32", 3.0), ("bfloat16", 1.0)])
def test_float32_products_take_longer_but_utilization_is_of_the_bfloat16_peak(unit, precision, seconds):
    found = step_plan.estimate(by_hand(float32=True, precision=precision), unit.name)
    assert found.terms["compute"] == pytest.approx(seconds)
    assert found.utilization[0] == pytest.approx(1 / max(seconds, 1.6))  # The network takes 1.6 s.


def test_encoder_flops_are_added_per_image(unit):
    found = step_plan.estimate(by_hand(), unit.name, encoder_flops=1e12)
    assert found.terms["compute"] == pytest.approx((2e12 + 4 * 1e12) / 2 / 1e12)


def test_formatted_plan_names_terms_and_collectives(unit):
    text = step_plan.format_plan(by_hand(), [step_plan.estimate(by_hand(), unit.name)])
    assert "Memory and traffic by the compiler by hand." in text
    assert "| unit | 102 %" in text and "| network " in text
    assert text.count("| all-reduce ") == 2 and "| EMA weights " in text


@pytest.mark.slow
def test_plan_of_a_tiny_generator():
    plan = tiny_plan(mesh="data:4")
    parameters = 4 * plan.num_parameters
    assert plan.memory["parameters"] == plan.memory["EMA weights"] == parameters
    assert 2 * parameters <= plan.memory["optimizer state"] <= 2 * parameters + 64
    assert plan.memory["batch"] == 2 * (4 * 16 * 4 + 4)
    # Splitting batches means summing gradients: every parameter goes around the ring once.
    sums = sum(item.bytes_sent for item in plan.traffic if item.kind == "all-reduce")
    assert 2 * 0.75 * parameters <= sums <= 1.3 * 2 * 0.75 * parameters
    found = step_plan.estimate(plan, "H100")
    assert found.fits and found.seconds[0] == max(found.terms.values())
    chip = chips.CHIPS["H100"]
    # True float32 has no tensor cores.
    expected = chip.float32_slowdown("highest") * plan.flops / 4 / chip.peak_flops
    assert found.terms["compute"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=6), "batch of 6 does not divide among 4 devices"),
        (dict(accumulation_steps=4), "accumulation_steps=4 microbatches makes 2 images per microbatch"),
    ],
)
def test_batches_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_plan(**changes)


def test_a_plan_for_a_gpu_has_the_memory_and_traffic_of_its_own_compiler(gpu_compiled):
    config = imagenet_generator.get_config("tiny")
    config.update(mesh="data:4", precision="tf32")
    plan = step_plan.plan_step(config, num_chips=4, num_columns=4, chip_name="L4")
    assert plan.compiler == gpu_compiler.compiler_name(chips.find_chip("L4"))
    assert plan.memory["activations and gradients"] == 5 and plan.memory["parameters"] == 4 * plan.num_parameters
    assert plan.traffic == [hlo.Collective("all-gather", 4, 4, 1, 9.0)]
    (text,) = gpu_compiled
    assert plan.float32 and plan.precision == "tf32" and "float32 at tf32" in plan.model
    assert "precision = [HIGH, HIGH]" in text and "[HIGHEST" not in text


@pytest.fixture(name="gpu_compiled")
def _gpu_compiled(monkeypatch):
    """The texts given to the GPU compiler, replaced: it takes the devices of this machine, and knows one program."""
    texts: list[str] = []
    program = gpu_compiler.GpuProgram(
        gpu_compiler.compiler_name(chips.find_chip("L4")), 1.0, 3, [], None,
        {"arguments": 1, "results": 2, "temporary": 5}, [hlo.Collective("all-gather", 4, 4, 1, 9.0)],
    )  # fmt: skip
    monkeypatch.setattr(gpu_compiler, "devices", lambda _, count: jax.devices()[:count])
    monkeypatch.setattr(
        gpu_compiler, "compile_program", lambda lowered, *_, **__: texts.append(lowered.as_text()) or program
    )
    return texts


def test_a_tokenizer_config_is_refused():
    with pytest.raises(ValueError, match="--config has trainer='tokenizer', but only a generator's step is planned"):
        step_plan.plan_step(photos_tokenizer.get_config("tiny"), 4)


def test_more_chips_than_devices_are_refused():
    with pytest.raises(ValueError, match="there are 4 devices, not 99"):
        step_plan.plan_step(imagenet_generator.get_config("tiny"), 99)


def test_the_frozen_encoder_counts_if_the_step_reads_images():
    config = photos_generator.get_config()
    params = pretrained.load(loading.resolve_path("photos")).params["tokenizer"]
    encoder = sum(leaf.nbytes for name in ("encoder", "quant") for leaf in jax.tree.leaves(params[name]))
    assert 0 < step_plan.encoder_bytes(config) == encoder < sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_the_frozen_encoder_does_not_count_for_cached_latents():
    config = photos_generator.get_config()
    config.data.source = "latents"
    assert step_plan.encoder_bytes(config) == 0


def test_the_published_encoder_counts_if_the_tokenizer_is_not_here():
    config = imagenet_generator.get_config()
    config.tokenizer_weights = "not/here.safetensors"
    assert step_plan.encoder_bytes(config) == pytest.approx(0.357e9, rel=0.01)


@pytest.mark.slow
def test_model_flops_of_the_large_size_agree_with_a_count_by_hand():
    """Two FLOPs for every parameter of a product and each of its input vectors, in three passes; traced only."""
    config = imagenet_generator.get_config()
    config.mesh = "data:1"
    config.batch_size = 1
    counted = programs.lower_generator_step(config, jax.devices()[:1], 16).flops
    width, flow = 1024, 1280
    columns = 15 * 32 * 2 * (4 + 2 + 8) * width**2  # Self-attention, query and output of cross-attention, MLP.
    condition = 16 * 32 * 2 * (2 + 8) * width**2
    head = (
        64 * 2 * (12 * (2 + 3) * flow**2 + 2 * flow**2 + 2 * 256 * flow + (256 + flow) * flow) + 16 * 2 * width * flow
    )
    assert counted == pytest.approx(3 * (columns + condition + head), rel=0.02)
