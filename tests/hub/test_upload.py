"""Pushing models to the Hub: the files of the repository, the model card, and what is refused."""

import json

import jax
import numpy as np
from PIL import Image
import pytest
import yaml

from eqjax import pretrained, save_image
from eqjax.evaluation import results
from eqjax.evaluation.protocol import weights_id
from eqjax.hub import upload
from eqjax.hub.card import Card
from tests.hub_server import TOKEN
from tests.sampling.small_models import local_model


def weights_of(model, **fields):
    modules = {"tokenizer": model.tokenizer, "generator": model.generator}
    params = {"tokenizer": model.tokenizer_params, "generator": model.generator_params}
    return pretrained.Weights(modules, params, model.latent_scale, model.class_names, **fields)


@pytest.fixture(name="workdir")
def _workdir(tmp_path):
    """The folder of a finished run, with samples of two steps."""
    folder = tmp_path / "run"
    config = {"batch_size": 3, "optimizer": {"peak_rate": 0.5}, "data": ["/home/me/pets"]}
    notes = f"generator after 7 steps; config: {json.dumps(config)}\ntokenizer after 3 steps;"
    pretrained.save(folder / "model.safetensors", weights_of(local_model(), notes=notes))
    for step in (5, 7):
        save_image(folder / "images" / f"samples_{step:07d}.png", np.full((4, 4, 3), step, np.uint8))
    return folder


def write_results(folder, weights, fid=7.25):
    protocol = {"weights": weights, "count": 8, "guidance_scale": 2.0, "reference": "reference.npz"}
    results.save(folder, [{"metrics": {"fid": fid, "kid": float("nan")}, "protocol": protocol}])


def head(text):
    """Returns the metadata of a card, as the Hub reads them."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def prepared(folder, *args, **keywords):
    folder.mkdir()
    upload.prepare(folder, *args, **keywords)
    return {path.name: path for path in folder.iterdir()}


def test_a_workdir_is_pushed_and_loaded_again(hub, start, workdir):
    write_results(workdir, weights_id(local_model()))
    program = start(HF_TOKEN=TOKEN)
    address = program.call("push", workdir, "owner/name", private=True, license="mit", message="First")
    repo = hub.repos["owner/name"]
    files = repo.revisions["main"]
    assert address == f"hf://owner/name@{repo.commit('main')}" and repo.private and repo.messages == ["First"]
    assert set(files) == {"model.safetensors", "config.json", "README.md", "samples.png", "results.json"}
    assert [line for line in program.call("log") if "Pushing" in line and "model.safetensors (0.1 MB)" in line]
    assert program.call("load", address)["weights"] == weights_id(local_model())
    assert "or it is private" in start().error("load", "hf://owner/name")


@pytest.mark.slow
def test_a_branch_is_made_and_an_existing_repository_kept(hub, start, workdir):
    hub.add("owner/name", {"notes.txt": b"kept"})
    program = start(HF_TOKEN=TOKEN)
    for _ in range(2):
        address = program.call("push", workdir, "owner/name", revision="trial")
    assert set(hub.repos["owner/name"].revisions["main"]) == {"notes.txt"}
    assert {"notes.txt", "model.safetensors"} <= set(hub.repos["owner/name"].revisions["trial"])
    assert address.endswith(hub.repos["owner/name"].commit("trial"))


@pytest.mark.slow
def test_a_refused_push_is_one_sentence(hub, start, workdir):
    message = start().error("push", workdir, "owner/name")
    assert message.startswith("nothing was pushed: ") and "`hf auth login`" in message
    message = start(HF_TOKEN=TOKEN).error("push", workdir, "stranger/name")
    assert "the Hub refuses access (403)" in message
    assert "nothing was pushed" in start(HF_HUB_OFFLINE="1").error("push", workdir, "owner/name")
    assert not hub.repos


@pytest.mark.parametrize("repo", ["name", "a/b/c", "hf://owner/name", "owner/"])
def test_a_malformed_name_is_refused_before_anything_is_read(repo):
    with pytest.raises(ValueError, match="names no model of the Hugging Face Hub"):
        upload.push_to_hub("there is no such file", repo)


def test_the_files_of_a_workdir(tmp_path, workdir):
    files = prepared(tmp_path / "out", str(workdir), "owner/name")
    assert set(files) == {"model.safetensors", "config.json", "README.md", "samples.png"}
    config = json.loads(files["config.json"].read_text())
    assert config["format"] == "eqjax-1" and config["class_names"] == ["cat", "dog", "eel"]
    assert config["generator"]["width"] == 16
    assert np.asarray(Image.open(files["samples.png"])).max() == 7  # The newest.
    metadata, body = head(files["README.md"].read_text())
    assert metadata["library_name"] == "eqjax" and metadata["pipeline_tag"] == "unconditional-image-generation"
    assert {"jax", "flax", "arxiv:2503.18948", "class-conditional"} <= set(metadata["tags"])
    assert not {"license", "base_model", "model-index"} & set(metadata)
    assert "![Samples](samples.png)" in body and "Origin: generator after 7 steps." in body
    assert 'eqjax.load_pretrained("hf://owner/name")' in body and 'model.sample("cat", num_columns=32)' in body
    assert "Nothing has been measured for this card." in body and "No license of these weights" in body
    assert '"…/pets"' in body and "/home/me" not in body
    assert '"peak_rate": 0.5' in body and "eqjax train-generator" in body
    assert "| generator: width " in body and "Classes: cat, dog, eel." in body


def test_pushed_weights_are_the_same_in_the_same_type_without_folders_of_the_machine(tmp_path, workdir):
    path = workdir / "model.safetensors"
    before = pretrained.load(path)
    pretrained.save(path, before, np.float16)
    pushed = prepared(tmp_path / "out", str(workdir), "owner/name", samples=False)["model.safetensors"]
    assert pretrained.storage_dtype(pushed) == np.float16 and pushed.stat().st_size < 1.1 * path.stat().st_size
    after, stored = pretrained.load(pushed), pretrained.load(path)
    jax.tree.map(np.testing.assert_array_equal, after.params, stored.params)
    assert b"/home/me" in path.read_bytes() and b"/home/me" not in pushed.read_bytes()
    assert "…/pets" in after.notes and after.notes.endswith("tokenizer after 3 steps;")


def test_measured_results_are_on_the_card_with_their_protocol(tmp_path, workdir):
    write_results(tmp_path / "evaluation", weights_id(local_model().astype("bfloat16")))
    files = prepared(
        tmp_path / "out", str(workdir), "owner/name", results_folder=tmp_path / "evaluation", license="mit"
    )
    assert json.loads(files["results.json"].read_text())[0]["metrics"] == {"fid": 7.25, "kid": None}
    metadata, body = head(files["README.md"].read_text())
    (index,) = metadata["model-index"]
    assert index["name"] == "name" and metadata["license"] == "mit"
    (entry,) = index["results"]
    (metric,) = entry["metrics"]
    assert (metric["type"], metric["value"], metric["args"]["count"]) == ("fid", 7.25, 8)
    assert entry["dataset"]["name"] == "reference.npz"
    assert "7.2500" in body and "guidance_scale: 2.0" in body and "No license" not in body


def test_results_of_other_weights_are_refused(tmp_path, workdir):
    write_results(tmp_path / "evaluation", "0123456789abcdef")
    with pytest.raises(ValueError, match=r"has results of other weights \(0123456789abcdef; these are"):
        prepared(tmp_path / "out", str(workdir), "owner/name", results_folder=tmp_path / "evaluation")
    with pytest.raises(FileNotFoundError, match="no results with metrics in .*nowhere"):
        prepared(tmp_path / "other", str(workdir), "owner/name", results_folder=tmp_path / "nowhere")


def test_a_model_is_stored_in_float32_with_samples_drawn_or_given(tmp_path):
    files = prepared(tmp_path / "out", local_model().astype("bfloat16"), "owner/name")
    weights = pretrained.load(files["model.safetensors"])
    assert weights.modules["generator"].dtype == "bfloat16" and weights.class_names == ("cat", "dog", "eel")
    assert np.asarray(Image.open(files["samples.png"])).shape[2] == 3
    save_image(tmp_path / "mine.png", np.full((4, 4, 3), 9, np.uint8))
    files = prepared(tmp_path / "given", local_model(), "owner/name", samples=tmp_path / "mine.png", base_model="a/b")
    assert np.asarray(Image.open(files["samples.png"])).max() == 9
    assert head(files["README.md"].read_text())[0]["base_model"] == "a/b"
    half = local_model()
    half = type(half)(half.tokenizer, half.tokenizer_params, None, {}, 0.5, None)
    files = prepared(tmp_path / "half", half, "owner/name")
    assert "samples.png" not in files and "model.encode(images)" in files["README.md"].read_text()
    assert "samples.png" not in prepared(tmp_path / "none", local_model(), "owner/name", samples=False)


def test_a_card_of_many_classes_lists_the_first_ones():
    names = tuple(f"class {i}" for i in range(41))
    text = Card(pretrained.Weights({}, {}, 1.0, names), "owner/name").text()
    assert "class 39, … (41 in all, in config.json)" in text and "class 40" not in text
