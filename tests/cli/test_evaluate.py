"""The commands of evaluation: their choice of images, results, and rejected flags."""

import json
import os
import sys
import types

import numpy as np
from PIL import Image
import pytest

from eqjax import config_files, pretrained
from eqjax.cli import analyze, analyze_comparison, analyze_images, command_line, evaluate, make_statistics
from eqjax.cli.main import COMMANDS
from eqjax.data import datasets
from eqjax.evaluation import Extractor, networks, results, statistics
from tests import subprocesses
from tests.evaluation import tiny_models


def parse(command, *arguments):
    """The flags of a command, from its arguments."""
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    return command_line.parse(COMMANDS[name], list(map(str, arguments)))[0]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for label, name in enumerate(("ape", "bee", "cow")):
        (root / name).mkdir()
        Image.fromarray(np.full((20, 90, 3), 80 * label, np.uint8)).save(root / name / "0.png")
    return root


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    """Weights files of a generator alone and of both modules, without class names."""
    root, model = tmp_path_factory.mktemp("weights"), tiny_models.model()
    modules = {"tokenizer": model.tokenizer, "generator": model.generator}
    params = {"tokenizer": model.tokenizer_params, "generator": model.generator_params}
    for path, names in (("generator", ["generator"]), ("both", ["tokenizer", "generator"])):
        weights = pretrained.Weights({n: modules[n] for n in names}, {n: params[n] for n in names}, 1.0)
        pretrained.save(root / f"{path}.safetensors", weights)
    return root


def model(class_names, num_classes: int | None = 3):
    """The attributes of a model that the choice of images uses; latents are gray levels."""
    return types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(resolution=16, column_width=4),
        generator=num_classes and types.SimpleNamespace(num_classes=num_classes),
        class_names=class_names,
        encode=lambda images: images[:, :1, 0, :1] / np.float32(80),
    )


_ORBIT_PLOTS = ("mean", "images", "scatter", "columns")

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
    args = parse(
        analyze, "--data.source=folder", f"--data.root={folder}", "--num_columns=5", "--num_batches=2", *options
    )
    config, labels = analyze_images.model_images(args, model(names))
    assert (config.height, config.width, config.resize) == (16, 20, 16)
    assert labels is not None and labels.tolist() == expected


def test_batches_of_crops_have_the_labels_of_the_model(folder):
    args = parse(analyze, "--data.source=folder", f"--data.root={folder}", "--data.classes=('ape','cow')")
    found = model(("cow", "bee", "ape"))
    config, labels = analyze_images.model_images(args, found)
    assert labels is not None
    batches = analyze_images.latent_batches(found, config, labels, num_columns=8, num_batches=2, seed=0)
    assert [labels.shape for _, labels in batches] == [(32,), (32,)]
    shown = {
        (float(value.item()), label)
        for latents, labels in batches
        for value, label in zip(latents, labels, strict=True)
    }
    assert shown == {(0.0, 2), (2.0, 0)}  # Apes are black, and the model's class 2.


def test_photographs_are_the_default_for_models_of_them():
    config, labels = analyze_images.model_images(parse(analyze), model(("coffee", "cat", "brick")))
    assert config.source == "photos" and config.classes == ("coffee", "cat", "brick")
    assert labels is not None and labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("names", "num_classes"), [(("ape", "bee", "cow"), 3), (None, 12), (None, None)])
def test_other_models_need_a_data_source(folder, names, num_classes):
    with pytest.raises(ValueError, match="not built-in photographs; choose the images .* --data.source=folder"):
        analyze_images.model_images(parse(analyze), model(names, num_classes))
    with pytest.raises(ValueError, match="not built-in photographs"):
        analyze_images.model_images(parse(analyze, f"--data.root={folder}"), model(names, num_classes))


def test_a_tokenizer_alone_needs_no_labels():
    _, labels = analyze_images.model_images(parse(analyze, "--data.source=photos"), model(None, None))
    assert labels is None


@pytest.mark.parametrize(
    ("names", "num_classes", "options", "message"),
    [
        (None, 4, (), "4 classes without names, but the data has 3: give data with all"),
        (None, 2, (), "2 classes without names, but the data has 3: give data with all"),
        (("ape", "bee", "dog"), 3, (), "classes dog have no folder"),
        (("ape", "bee"), 2, ("--data.classes=('ape','cow')",), r"classes \['cow'\] of the data are not among"),
        (
            None,
            3,
            ("--data.height=32",),
            "--data.height=32 .* leave them out. .* 16 pixels, and --num_columns=8 columns",
        ),
        (None, 3, ("--data.source=latents",), "holds no images"),
    ],
)
def test_images_that_do_not_fit_the_model_are_rejected(folder, names, num_classes, options, message):
    args = parse(analyze, "--data.source=folder", f"--data.root={folder}", *options)
    with pytest.raises(ValueError, match=message):
        analyze_images.model_images(args, model(names, num_classes))


def test_analysis_needs_matplotlib_and_a_tokenizer(files, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no tokenizer, which this command needs"):
        analyze.run(parse(analyze, f"--weights={files}/generator.safetensors"), ["columns"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for kind in analyze.KINDS:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'eqjax\[analysis\]'"):
            analyze.run(parse(analyze, "--weights=absent", f"--output={tmp_path}"), [kind])
    assert os.listdir(tmp_path) == []


def test_a_comparison_reuses_tokenizers_of_the_same_flags_only(tmp_path, monkeypatch):
    trained = []

    def train(config, workdir):
        trained.append(workdir)
        os.makedirs(workdir)
        with open(os.path.join(workdir, "config.json"), "w") as file:
            file.write(config.to_json_best_effort())
        open(os.path.join(workdir, "model.safetensors"), "w").close()

    monkeypatch.setattr(analyze_comparison.tokenizer_training, "train_and_evaluate", train)
    config = config_files.load("comparison")
    workdirs = {analyze_comparison.train_tokenizer(config, str(tmp_path), "strict", 0) for _ in range(2)}
    assert trained == list(workdirs)
    config.num_columns, config.training.tokenizer.channels = 4, 64
    with pytest.raises(
        ValueError, match=r"strict_0 .*\n  data.width: workdir 64, now 32\n  tokenizer.channels: workdir 32"
    ):
        analyze_comparison.train_tokenizer(config, str(tmp_path), "strict", 0)


def test_a_comparison_resumes_with_what_is_missing(tmp_path, monkeypatch):
    computed = []

    class Subject:
        """Measures of nothing."""

        def __init__(self, _, model, anchored, seed):
            self._name, self.tokenizer_measures = (model, anchored, seed), {"psnr": 20.0}

        def measure(self, generator):
            computed.append((*self._name, generator))
            return {"held_out_ratio": 0.5}

    monkeypatch.setattr(analyze_comparison, "train_tokenizer", lambda _config, _output, name, _seed: name)
    monkeypatch.setattr(analyze_comparison.eqjax, "load_pretrained", lambda name: name)
    monkeypatch.setattr(analyze_comparison, "Subject", Subject)
    reports = []
    monkeypatch.setattr(
        analyze_comparison.comparison_report, "write_report", lambda _, results: reports.append(results) or ""
    )
    arguments = ["--config=comparison:tiny", f"--output={tmp_path}"]
    analyze.run(parse(analyze, *arguments), ["comparison"])
    assert len(computed) == 8 and len(reports[0]) == 4 and computed[0] == ("published", False, 0, "window 3")
    (tmp_path / "results" / "strict_window_3_1.json").unlink()
    analyze.run(parse(analyze, *arguments), ["comparison"])
    assert computed[8:] == [("strict", False, 1, "window 3")] and reports[0] == reports[1]
    mine = tmp_path / "mine.py"
    lines = ["from eqjax import config_files", "def get_config():", "    config = config_files.load('comparison:tiny')"]
    mine.write_text("\n".join([*lines, "    config.anchored = ('strict',)", "    return config"]), encoding="utf-8")
    analyze.run(parse(analyze, f"--config={mine}", f"--output={tmp_path}"), ["comparison"])
    assert [one[:3] for one in computed[9:]] == [("strict", True, seed) for seed in (0, 0, 1, 1)]
    assert list(reports[2])[4:] == ["anchored strict, window 3", "anchored strict, full causal"]
    with pytest.raises(
        ValueError, match=r"published_window_3_0.json was measured with other fields.*\n  generator_steps"
    ):
        analyze.run(parse(analyze, *arguments, "--config.generator_steps=3"), ["comparison"])


def test_held_out_crops_come_from_the_parts_for_evaluation(monkeypatch):
    asked, make_source = [], datasets.make_source
    monkeypatch.setattr(
        datasets, "make_source", lambda config, train=True: asked.append(train) or make_source(config, train)
    )
    config = analyze_images.photo_config(("coffee", "cat"))
    images, labels = analyze_images.crops(config, 32, 40, 6, seed=1, held_out=True)
    assert asked == [False] and images.shape == (6, 32, 40, 3) and set(labels.tolist()) == {0, 1}
    again, _ = analyze_images.crops(config, 32, 40, 6, seed=1, held_out=True)
    trained, _ = analyze_images.crops(config, 32, 40, 6, seed=1)
    np.testing.assert_array_equal(images, again)
    assert (images != trained).any()


def test_a_comparison_rejects_data_flags():
    with pytest.raises(ValueError, match="--data.flip would have no effect"):
        analyze.run(parse(analyze, "--data.flip=false"), ["comparison"])


@pytest.mark.parametrize("words", [[], ["tokens"], ["columns", "equivariance"]])
def test_an_analysis_needs_its_name(words):
    with pytest.raises(ValueError, match=r"analyze: columns, equivariance, symmetries, comparison; got \["):
        analyze.run(parse(analyze), words)


@pytest.mark.slow
def test_symmetries_of_images_are_written_without_a_model(tmp_path):
    groups = ("shift", "flip", "warp")  # Scalings need six columns.
    options = ("--data.height=16", "--num_columns=4", "--num_batches=2", "--critic_steps=1", "--data.flip=False")
    analyze.run(parse(analyze, "--weights=absent", *options, f"--output={tmp_path}"), ["symmetries"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["flip"] is False and results["critic_steps"] == 1 and tuple(results["symmetries"]) == groups
    for found in results["symmetries"].values():
        assert found["images"] == 64 and found["overlap"] == pytest.approx(min(1, 2 - 2 * found["auc"]))
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.split()[1] for row in rows] == [*groups]
    assert {path.name for path in tmp_path.iterdir()} >= {"overlaps.csv", "overlaps.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.source=latents", "--data.root=cache"), "holds no images"),
        (("--data.width=40",), "images 40 pixels wide do not divide into columns"),
        (("--data.holdout_fraction=0",), "holdout_fraction=0 leaves nothing"),
    ],
)
def test_symmetries_need_images_and_some_that_are_held_out(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        analyze.run(parse(analyze, *options, f"--output={tmp_path}"), ["symmetries"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_equivariance_of_a_model_is_written_as_figures_and_a_table(files, tmp_path):
    """Of a model without class names, on a folder of images of noise: columns of even ones differ by rounding alone."""
    output, rng = tmp_path / "report", np.random.default_rng(0)
    for name in ("ape", "bee", "cow"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (20, 90, 3), np.uint8)).save(tmp_path / "data" / name / "0.png")
    arguments = (f"--weights={files}/both.safetensors", "--data.source=folder", f"--data.root={tmp_path}/data")
    options = ("--num_columns=6", "--num_batches=2", f"--output={output}")
    analyze.run(parse(analyze, *arguments, *options, "--boundary=circular"), ["equivariance"])
    groups = ("shift", "flip", "scale", "warp")
    names = {f"{name}_{kind}" for name in groups for kind in _ORBIT_PLOTS if kind != "columns"}
    names |= {"footprints", "stereo", "index_shifts"}
    assert {path.stem for path in output.glob("*.csv")} == names
    # Maps of columns and elements are figures alone.
    assert {path.stem for path in output.glob("*.png")} == names | {f"{name}_columns" for name in groups}
    for path in output.glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{path.name} is blank"
    measures = json.loads((output / "results.json").read_text())
    assert measures["boundary"] == "circular" and measures["generator"]["index_shifts"][:2] == [1, 2]
    assert len(measures["orbits"]["shift"]["psnrs"]) == 16
    lines = [line.split(" | ") for line in (output / "table.md").read_text().splitlines()]
    psnr = f"{measures['psnr']:.1f} "
    table = {line[0].strip("| "): line[1:] for line in lines}
    for name in ("shift", "flip", "scale", "warp", "intrinsic dimension of columns (TwoNN)"):
        assert table[name][-1].startswith(psnr)  # No figure without it.
    assert table["sampled columns"]


# ── Metrics ─────────────────────────────────────────────────────────────────────────────────────


def test_images_of_another_size_are_refused_with_their_flags(tmp_path):
    args = parse(evaluate, "--network=none", f"--output={tmp_path}/out")
    with pytest.raises(ValueError, match="^--data.height=64 --data.width=64: image height 64 does not fit .* 128 "):
        evaluate.evaluate_images(args)


@pytest.mark.parametrize("evaluate_half", [evaluate.evaluate_generation, evaluate.evaluate_images])
def test_evaluation_needs_a_tokenizer(files, tmp_path, evaluate_half):
    options = [f"--weights={files}/generator.safetensors", "--network=none", f"--output={tmp_path}/out"]
    with pytest.raises(ValueError, match="holds no tokenizer, which this command needs"):
        evaluate_half(parse(evaluate, *options))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--guidance_scale=1,-2", "guidance_scale=-2.0 must be a finite number ≥ 0"),
        ("--guidance_scale=a", "--guidance_scale=a: each must be a number"),
        ("--solver=eular", "solver='eular' must be one of .* did you mean 'euler'"),
        ("--time_grid=cosin", "time_grid='cosin' must be one of .* did you mean 'cosine'"),
        ("--guidance_schedule=lin", "guidance_schedule='lin' must be one of .* did you mean 'linear'"),
        ("--data.root=images", "--data.root: generation reads no images, and compares with --reference"),
    ],
)
def test_bad_flags_are_rejected_before_anything_is_written(files, tmp_path, option, message):
    options = [f"--weights={files}/both.safetensors", "--network=none", f"--output={tmp_path}/out", "--num_images=2"]
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate_generation(parse(evaluate, *options, option))
    assert os.listdir(tmp_path) == []


def test_a_folder_of_other_results_is_rejected_before_weights_are_loaded(tmp_path):
    (tmp_path / "results.json").write_text('{"model": []}')
    with pytest.raises(ValueError, match="results.json was not written by `eqjax evaluate`"):
        evaluate.evaluate_generation(parse(evaluate, "--weights=absent", f"--output={tmp_path}"))


@pytest.mark.parametrize("words", [[], ["sampling"], ["generation", "reconstruction"]])
def test_evaluate_needs_one_known_word(words):
    with pytest.raises(ValueError, match="name what to evaluate: generation or reconstruction; got"):
        evaluate.run(parse(evaluate), words)


@pytest.mark.slow
def test_generation_writes_images_and_a_row_per_guidance_scale(files, tmp_path):
    options = [f"--weights={files}/both.safetensors", "--num_flow_steps=2", "--batch_size=2", "--num_images=6"]
    options += [f"--output={tmp_path / 'out'}"]
    network = "--network=none"
    log = subprocesses.run("eqjax", "evaluate", "generation", *options, network, "--guidance_scale=1,2", "--npz")
    assert "images: 6/6" in log and "left" in log
    with np.load(tmp_path / "out" / "guidance_2" / "samples.npz") as file:
        assert file["arr_0"].shape == (6, 16, 16, 3) and sorted(file["arr_1"]) == [0, 0, 1, 1, 2, 2]
    assert len(results.load(tmp_path / "out")) == 2
    log = subprocesses.run("eqjax", "evaluate", "generation", *options, f"--nets_folder={tmp_path}", code=1)
    assert "pt_inception-2015-12-05" in log and "Traceback" not in log


# ── Statistics ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.height=16"], "give --input=.* or a data set: --data.source=folder .* --data.source=photos"),
        (["--input=images", "--data.height=16", "--num_images=2"], "--data.height, --num_images would have no effect"),
    ],
)
def test_statistics_need_an_input_or_a_data_set(options, message):
    with pytest.raises(ValueError, match=message):
        make_statistics.find_images(parse(make_statistics, "--output=s.npz", *options))


def test_statistics_of_a_folder_or_a_data_set(folder):
    assert make_statistics.find_images(parse(make_statistics, "--output=s.npz", f"--input={folder}")).count == 3
    options = ["--data.source=folder", f"--data.root={folder}", "--num_images=2"]
    options += ["--data.height=16", "--data.width=16", "--data.resize=16"]
    assert make_statistics.find_images(parse(make_statistics, "--output=s.npz", *options)).count == 2


def test_statistics_of_an_npz_of_images(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    monkeypatch.setattr(networks, "inception", lambda _: tiny_models.network())
    options = [f"--input={tmp_path}/images.npz", f"--output={tmp_path}/s.npz", "--batch_size=2"]
    leftover = tmp_path / "s.npz.k3v_x9ab.tmp"  # Of a killed process.
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    make_statistics.run(parse(make_statistics, *options))
    assert not leftover.exists()
    written = statistics.load(tmp_path / "s.npz")
    expected = Extractor(tiny_models.network(), per_device_batch_size=2).collect(iter([images]), 20).statistics
    np.testing.assert_allclose(written.covariance, expected.covariance, rtol=1e-6)
    assert written.count == 20 and written.protocol == expected.protocol
    assert written.features is not None and written.features.shape == (20, 5)
