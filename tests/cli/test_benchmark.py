"""The benchmark command: what its flags ask for, and rejected arguments."""

import json

import pytest

from eqjax.cli import benchmark, command_line
from eqjax.cli.main import COMMANDS
from eqjax.perf.benchmark_options import BenchmarkOptions
from eqjax.sampling.options import SamplingOptions

COMMAND = COMMANDS["benchmark"]


def requests(*arguments):
    args, words = command_line.parse(COMMAND, arguments)
    return (benchmark.quick_requests if args.quick else benchmark.benchmark_requests)(args, words)


def test_a_word_alone_has_the_default_options():
    assert requests("sampling") == [BenchmarkOptions()]


def test_every_flag_reaches_the_options():
    sampling = SamplingOptions(guidance_scale=1.0, num_flow_steps=10, solver="heun")
    assert requests(
        "training", "--config=L", "--batch_size=4", "--num_columns=8", "--dtype=bfloat16", "--guidance_scale=1",
        "--num_flow_steps=10", "--solver=heun", "--repeats=5", "--precision=tf32", "--profile", "--parts=step",
        "--config.generator.remat=full", "--config.dropout_rng", "rbg",
    ) == [BenchmarkOptions(
        kind="training", config="L", batch_size=4, num_columns=8, dtype="bfloat16", sampling=sampling, repeats=5,
        precision="tf32", num_kernels=10, parts=("step",), fields=("generator.remat=full", "dropout_rng=rbg"),
    )]  # fmt: skip


def test_lists_are_measured_in_all_combinations():
    found = requests("sampling", "decoding", "--config=S,L", "--batch_size=1,64")
    assert len(found) == 8 and {(o.kind, o.config, o.batch_size) for o in found} == {
        (kind, config, size) for kind in ("sampling", "decoding") for config in "SL" for size in (1, 64)
    }


def test_commas_of_a_variant_split_no_list():
    found = requests("training", "--config=imagenet_tokenizer:stage2,dtype=bfloat16,photos_generator:tiny,L")
    assert [o.config for o in found] == ["imagenet_tokenizer:stage2,dtype=bfloat16", "photos_generator:tiny", "L"]


def test_the_quick_set_takes_the_output_and_a_profile_alone():
    found = requests("--quick", "--profile", "--output=b.json", "--time_limit=1")
    assert len(found) > 1 and {o.num_kernels for o in found} == {10}
    with pytest.raises(ValueError, match="fixed set, so sampling, --config would have no effect"):
        requests("--quick", "sampling", "--config=S")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the work to measure: sampling, decoding, training, floor; or give --quick"),
        (["sampling", "--batch_size=1,two"], "--batch_size=1,two: each must be an integer ≥ 1"),
        (["sampling", "--batch_size=0"], "at least one image"),
        (["sampling", "--config="], "need values"),
        (["sampling", "--dtype=float64"], "'float64' is not one of float32, bfloat16"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        requests(*arguments)


def test_resuming_needs_a_file():
    args, words = command_line.parse(COMMAND, ["floor", "--resume"])
    with pytest.raises(ValueError, match="--resume continues the file of --output"):
        benchmark.run(args, words)


def test_the_file_has_what_is_printed(tmp_path, capsys):
    output = tmp_path / "b.json"
    arguments = ["floor", "--config=S,B", "--parts=flow head", f"--output={output}", "--num_flow_steps=3"]
    benchmark.run(*command_line.parse(COMMAND, arguments))
    rows = json.loads(output.read_text())["rows"]
    assert [(row["config"], row["part"]) for row in rows] == [("S", "flow head"), ("B", "flow head")]
    printed = capsys.readouterr().out
    assert f"{rows[0]['gflop']:.4g}" in printed and "kind=floor" in printed
