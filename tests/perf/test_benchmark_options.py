"""What a benchmark measures: parts of kinds, combinations, the quick set, and what is refused."""

import pytest

from eqjax.perf import benchmark_options
from eqjax.perf.benchmark_options import BenchmarkOptions


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), ("transformer", "flow head", "sampling", "decoder")),
        (dict(config="photos"), ("transformer", "flow head", "sampling", "decoder")),
        (dict(parts=("decoder", "flow head")), ("flow head", "decoder")),
        (dict(kind="decoding"), ("decoder",)),
        (dict(kind="training", config="L"), ("step from cached latents", "step from images")),
        (dict(kind="training", config="imagenet_tokenizer", fields=("objective.kl_weight=0.1",)), ("step",)),
        (dict(kind="floor"), ("condition", "transformer", "flow head", "decoder")),
    ],
)
def test_a_kind_has_its_parts(options, expected):
    assert BenchmarkOptions(**options).part_names() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="flying"), r"'flying' is not one of \('sampling', 'decoding', 'training', 'floor'\)"),
        (dict(kind="training", config="XL"), "none of the sizes S, B, L, H, and there is no file XL"),
        (dict(parts=("encoder",)), "sampling of S has the parts transformer, .*, and no 'encoder'"),
        (dict(kind="training", config="imagenet_tokenizer", parts=("step from images",)), "has the parts step, and no"),
        (
            dict(fields=("generator.dpeth=3",)),
            "--config.generator.dpeth: S has no such field; .* generator.depth|depth",
        ),
        (dict(fields=("generator.depth=many",)), "generator.depth=many"),
        (dict(kind="training", fields=("batch_size=3",)), "--config.batch_size is set by --batch_size here"),
        (dict(fields=("generator.dtype=bfloat16",)), "is set by --dtype here"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkOptions(**options).part_names()


def test_combinations_keep_a_model_for_all_of_its_rows():
    found = benchmark_options.combinations(
        ["sampling", "decoding"], ["S", "L"], ["bfloat16"], [1, 64], BenchmarkOptions(repeats=7)
    )
    assert [(o.config, o.kind, o.batch_size) for o in found] == [
        ("S", "sampling", 1), ("S", "sampling", 64), ("S", "decoding", 1), ("S", "decoding", 64),
        ("L", "sampling", 1), ("L", "sampling", 64), ("L", "decoding", 1), ("L", "decoding", 64),
    ]  # fmt: skip
    assert {(o.dtype, o.repeats) for o in found} == {("bfloat16", 7)}


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_the_quick_set_is_known_and_the_large_one_is_for_accelerators(platform):
    found = benchmark_options.quick(platform)
    assert all(request.part_names() for request in found)
    assert (found[0].config == "L") == (platform == "gpu")
    assert len(set(map(str, found))) == len(found)
