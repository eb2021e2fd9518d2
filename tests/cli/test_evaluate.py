"""The commands of evaluation, as far as they come before anything is compiled: which images, and what is refused."""

import os
import sys
import types

from absl import flags
import numpy as np
from PIL import Image
import pytest

from eqjax import pretrained
from eqjax.cli import analyze, evaluate, make_statistics
from tests.evaluation import tiny_models


def parse(command, *arguments):
    """The flags of a command, from its arguments."""
    values, argv = flags.FlagValues(), ["command", *map(str, arguments)]
    command.define_flags(values, argv)
    values(argv)
    return values


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for label, name in enumerate(("ape", "bee", "cow")):
        (root / name).mkdir()
        Image.fromarray(np.full((20, 90, 3), 80 * label, np.uint8)).save(root / name / "0.png")
    return root


@pytest.fixture(name="halves", scope="module")
def _halves(tmp_path_factory):
    """Weights files of a generator alone and of both halves, without class names."""
    root, model = tmp_path_factory.mktemp("weights"), tiny_models.model()
    modules = {"tokenizer": model.tokenizer, "generator": model.generator}
    params = {"tokenizer": model.tokenizer_params, "generator": model.generator_params}
    for path, names in (("generator", ["generator"]), ("both", ["tokenizer", "generator"])):
        weights = pretrained.Weights({n: modules[n] for n in names}, {n: params[n] for n in names}, 1.0)
        pretrained.save(root / f"{path}.safetensors", weights)
    return root


def model(class_names, num_classes=3):
    """What the choice of images looks at."""
    return types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(resolution=16, column_width=4),
        generator=num_classes and types.SimpleNamespace(num_classes=num_classes),
        class_names=class_names,
        encode=lambda images: images[:, 0, 0, :1] / np.float32(80),
    )


# ── Analysis ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("ape", "bee", "cow"), (), [0, 1, 2]),
        (("cow", "ape", "bee"), (), [0, 1, 2]),
        (("cow", "ape", "bee"), ("--data.classes=('ape','cow')",), [1, 0]),
        (None, (), [0, 1, 2]),
        (None, ("--data.classes=('cow','bee')",), [0, 1]),
    ],
)
def test_images_have_the_labels_of_the_model(folder, names, options, expected):
    args = parse(analyze, "--data.source=folder", f"--data.root={folder}", "--columns=5", "--batches=2", *options)
    config, labels = analyze.model_images(args, model(names))
    assert (config.height, config.width, config.resize) == (16, 20, 16) and labels.tolist() == expected


def test_batches_of_crops_have_the_labels_of_the_model(folder):
    args = parse(
        analyze, "--data.source=folder", f"--data.root={folder}", "--batches=2", "--data.classes=('ape','cow')"
    )
    found = model(("cow", "bee", "ape"))
    batches = analyze.latent_batches(found, *analyze.model_images(args, found), args, seed=0)
    assert [labels.shape for _, labels in batches] == [(32,), (32,)]
    shown = {
        (float(value[0]), label) for latents, labels in batches for value, label in zip(latents, labels, strict=True)
    }
    assert shown == {(0.0, 2), (2.0, 0)}  # Apes are black, and the model's class 2.


def test_photographs_are_for_models_of_them(folder):
    args = parse(analyze)
    config, labels = analyze.model_images(args, model(("coffee", "cat", "brick")))
    assert config.source == "photos" and config.classes == ("coffee", "cat", "brick") and labels.tolist() == [0, 1, 2]
    for names, generator in ((("ape", "bee", "cow"), 3), (None, 12), (None, None)):
        with pytest.raises(ValueError, match="not built-in photographs; say on which images .* --data.source=folder"):
            analyze.model_images(args, model(names, generator))
        with pytest.raises(ValueError, match="not built-in photographs"):
            analyze.model_images(parse(analyze, f"--data.root={folder}"), model(names, generator))
    _, labels = analyze.model_images(parse(analyze, "--data.source=photos"), model(None, None))
    assert labels is None  # A tokenizer alone needs no classes.


@pytest.mark.parametrize(
    ("names", "num_classes", "options", "message"),
    [
        (None, 4, (), "4 classes without names, the data has 3: give all"),
        (None, 2, (), "2 classes without names, the data has 3: give all"),
        (("ape", "bee", "dog"), 3, (), "classes dog have no folder"),
        (("ape", "bee"), 2, ("--data.classes=('ape','cow')",), r"classes \['cow'\] of the data are not among"),
        (None, 3, ("--data.height=32",), "--data.height=32 .* leave them out. .* 16 pixels, and --columns=8 columns"),
        (None, 3, ("--data.source=latents",), "holds no images"),
    ],
)
def test_images_that_are_not_the_models(folder, names, num_classes, options, message):
    args = parse(analyze, "--data.source=folder", f"--data.root={folder}", *options)
    with pytest.raises(ValueError, match=message):
        analyze.model_images(args, model(names, num_classes))


def test_analysis_needs_matplotlib_and_a_tokenizer(halves, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="loaded without a tokenizer"):
        analyze.run(parse(analyze, f"--weights={halves}/generator.safetensors"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for options in (["--weights=absent"], ["--compare", f"--output={tmp_path}"]):
        with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[analysis\]'"):
            analyze.run(parse(analyze, *options))
    assert os.listdir(tmp_path) == []


def test_a_comparison_takes_up_tokenizers_of_the_same_flags_alone(tmp_path, monkeypatch):
    trained = []

    def train(config, workdir):
        trained.append(workdir)
        os.makedirs(workdir)
        with open(os.path.join(workdir, "config.json"), "w") as file:
            file.write(config.to_json_best_effort())
        open(os.path.join(workdir, "model.safetensors"), "w").close()

    monkeypatch.setattr(analyze.tokenizer_training, "train_and_evaluate", train)
    for _ in range(2):
        workdir = analyze.train_tokenizer(parse(analyze, f"--output={tmp_path}"), "strict", 0)
    assert trained == [workdir]
    other = parse(analyze, f"--output={tmp_path}", "--channels=64", "--columns=4")
    with pytest.raises(
        ValueError, match=r"strict_0 .*\n  data.width: there 64, now 32\n  tokenizer.channels: there 32"
    ):
        analyze.train_tokenizer(other, "strict", 0)
    with pytest.raises(ValueError, match="--data.flip would change nothing"):
        analyze.run(parse(analyze, "--compare", "--data.flip=false"))


# ── Metrics ─────────────────────────────────────────────────────────────────────────────────────


def test_what_evaluation_refuses_before_it_draws(halves, tmp_path):
    options = ["--network=none", f"--output={tmp_path}/out", "--num_images=2"]
    half, both = f"--weights={halves}/generator.safetensors", f"--weights={halves}/both.safetensors"
    for part in (evaluate.reconstruction, evaluate.generation):
        with pytest.raises(ValueError, match="loaded without a tokenizer"):
            part(parse(evaluate, half, *options))
    with pytest.raises(ValueError, match="guidance_scale=-2.0 must be ≥ 0"):
        evaluate.generation(parse(evaluate, both, *options, "--guidance=1,-2"))
    with pytest.raises(ValueError, match="--guidance takes numbers, not 'a'"):
        evaluate.generation(parse(evaluate, both, *options, "--guidance=a"))
    with pytest.raises(ValueError, match="--data.root: generation reads no images, and compares with --reference"):
        evaluate.generation(parse(evaluate, both, *options, "--data.root=images"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"model": []}')
    with pytest.raises(ValueError, match="results.json was not written by `eqjax evaluate`"):
        evaluate.generation(parse(evaluate, "--weights=absent", *options))
    for wrong in ("--solver=eular", "--time_grid=cosin", "--guidance_schedule=lin", "--sampler=solver=heun"):
        with pytest.raises(flags.Error, match="euler|cosine|linear|sampler"):
            parse(evaluate, wrong)


def test_statistics_are_of_images_that_were_named(folder, tmp_path):
    output = f"--output={tmp_path}/s.npz"
    with pytest.raises(ValueError, match="give --input=.* or a data set: --data.source=folder .* --data.source=photos"):
        make_statistics.find_images(parse(make_statistics, output, "--data.height=16"))
    extra = ["--data.height=16", "--num_images=2"]
    with pytest.raises(ValueError, match="--data.height, --num_images would change nothing"):
        make_statistics.find_images(parse(make_statistics, output, f"--input={folder}", *extra))
    assert make_statistics.find_images(parse(make_statistics, output, f"--input={folder}")).count == 3
    named = ["--data.source=folder", f"--data.root={folder}", *extra, "--data.width=16", "--data.resize=16"]
    assert make_statistics.find_images(parse(make_statistics, output, *named)).count == 2
