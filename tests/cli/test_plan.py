"""Planning: traffic of programs written by hand, a tiny plan from end to end, what it refuses."""

import subprocess
import sys

import jax
import pytest

from configs import imagenet_generator, photos_generator, photos_tokenizer
from eqjax import pretrained
from eqjax.perf import chips, step_plan

PROGRAM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[4,8]{1,0} all-gather(f32[1,8]{1,0} %x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %ag)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %ar = bf16[10]{0} all-reduce(bf16[10]{0} %y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  %cp = f32[3]{0} collective-permute(f32[3]{0} %z), source_target_pairs={{0,1},{1,0}}
  %rs = f32[2]{0} reduce-scatter(f32[4]{0} %z), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %none = f32[2]{0} all-reduce(f32[2]{0} %z), replica_groups=[8,1]<=[8], to_apply=%sum
}
"""


def test_traffic_by_hand():
    entries = {entry["kind"]: entry for entry in step_plan.traffic(PROGRAM)}
    assert entries["all-gather"] == {"kind": "all-gather", "group": 4, "span": 4, "count": 6, "bytes": 6 * 0.75 * 128}
    assert entries["all-reduce"] == {"kind": "all-reduce", "group": 2, "span": 5, "count": 1, "bytes": 20.0}
    assert entries["collective-permute"]["bytes"] == 12
    assert entries["reduce-scatter"]["bytes"] == 0.5 * 16


def test_groups_by_hand():
    def groups(text):
        return step_plan._groups(f"%x = f32[] all-reduce(%y), replica_groups={text}, to_apply=%z").tolist()

    assert groups("{{0,2},{1,3}}") == groups("[2,2]<=[2,2]T(1,0)") == [[0, 2], [1, 3]]
    assert groups("mesh['a'=2,'b'=2] {'a'}") == [[0, 2], [1, 3]]
    assert groups("mesh['a'=2,'b'=2] {'a','b'}") == [[0, 1, 2, 3]]
    assert groups("mesh['a'=4] {'a':(2)2}") == [[0, 1], [2, 3]]
    assert groups("mesh['a'=4] {'a':(1)2}") == [[0, 2], [1, 3]]
    permuted = "mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) "
    assert groups(permuted + "{'b'}") == [[0, 1], [2, 3], [4, 5]]
    assert groups(permuted + "{'c'}") == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(ValueError, match="no groups of devices in"):
        groups("others")


def plan(**changes):
    config = imagenet_generator.get_config("tiny")
    config.update(changes)
    return step_plan.analyze(config, 4, columns=4)


@pytest.mark.slow
def test_a_plan_from_end_to_end():
    one = plan(mesh="data:4")
    parameters = 4 * one["parameters"]
    assert one["memory"]["parameters"] == one["memory"]["averages"] == parameters
    assert 2 * parameters <= one["memory"]["optimizer"] <= 2 * parameters + 64
    assert one["memory"]["batch"] == 2 * (4 * 16 * 4 + 4)
    # Splitting batches means summing gradients: every parameter goes round once.
    sums = sum(entry["bytes"] for entry in one["traffic"] if entry["kind"] == "all-reduce")
    assert 2 * 0.75 * parameters <= sums <= 1.3 * 2 * 0.75 * parameters
    found = step_plan.estimate(one, "H100")
    assert found["fits"] and found["seconds"][0] == max(found["terms"].values())
    chip, work = chips.CHIPS["H100"], one["flops"] / 4
    assert found["terms"]["compute"] == pytest.approx(2 * work / chip.flops)  # float32, as TF32.
    more = step_plan.estimate(one, "H100", encoder_flops=1e9)
    assert more["terms"]["compute"] - found["terms"]["compute"] == pytest.approx(2 * 1e9 * 8 / 4 / chip.flops)
    assert "bound by" in step_plan.text(one, [found]) and "all-reduce" in step_plan.text(one, [found])


def test_what_a_plan_refuses():
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 devices"):
        plan(batch_size=6)
    with pytest.raises(ValueError, match="accumulation_steps=4 parts makes 2 images a part"):
        plan(accumulation_steps=4)
    with pytest.raises(ValueError, match="--config has trainer='tokenizer', but only a generator's step is planned"):
        step_plan.analyze(photos_tokenizer.get_config("tiny"), 4)
    with pytest.raises(ValueError, match="there are 4 devices, not 99"):
        step_plan.analyze(imagenet_generator.get_config("tiny"), 99)
    with pytest.raises(ValueError, match="--on='abacus' is not in the table: H100"):
        step_plan.estimate({}, "abacus")
    done = subprocess.run(
        [sys.executable, "-m", "eqjax.cli.plan", "--config=configs/imagenet_generator.py:size=H", "--on=H100,abacus"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "eqjax.cli.plan: --on='abacus' is not" in done.stderr, done.stderr


def test_the_frozen_encoder_counts_where_images_are_read():
    config = photos_generator.get_config()
    params = pretrained.load(pretrained.resolve_path("photos")).params["tokenizer"]
    encoder = sum(leaf.nbytes for name in ("encoder", "quant") if name in params
                  for leaf in jax.tree.leaves(params[name]))  # fmt: skip
    assert 0 < step_plan.encoder_bytes(config) == encoder < sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    config.data.source = "latents"
    assert step_plan.encoder_bytes(config) == 0


@pytest.mark.slow
def test_model_flops_of_the_large_size():
    """Traced only. By hand: two FLOPs for every parameter of a product and its input vectors, three such passes."""
    config = imagenet_generator.get_config()
    config.mesh = "data:1"
    config.batch_size = 1
    _, _, _, needed = step_plan.lower(config, jax.devices()[:1], 16)
    width, flow = 1024, 1280
    columns = 15 * 32 * 2 * (4 + 2 + 8) * width**2  # Self-attention, query and output of cross-attention, MLP.
    condition = 16 * 32 * 2 * (2 + 8) * width**2
    head = (
        64 * 2 * (12 * (2 + 3) * flow**2 + 2 * flow**2 + 2 * 256 * flow + (256 + flow) * flow) + 16 * 2 * width * flow
    )
    assert needed == pytest.approx(3 * (columns + condition + head), rel=0.02)
