"""Loading models from the Hub: weights of eqjax, the published files, and what is refused."""

import pathlib

import pytest

from eqjax import Generator, convert, pretrained
from eqjax.convert import torch_archive
from eqjax.evaluation.protocol import weights_id
from tests import published_checkpoints
from tests.random_params import random_params
from tests.sampling.small_models import local_model

PUBLISHED = "UmiSonoda16/EquivariantModeling"


def small_weights():
    model = local_model()
    return pretrained.Weights(
        {"tokenizer": model.tokenizer, "generator": model.generator},
        {"tokenizer": model.tokenizer_params, "generator": model.generator_params},
        model.latent_scale,
        model.class_names,
    )


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    """The files of a repository of eqjax."""
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    pretrained.save(path, small_weights())
    return {"model.safetensors": path.read_bytes(), "config.json": b'{"format": "eqjax-1"}'}


@pytest.fixture(name="published", scope="module")
def _published(tmp_path_factory):
    """Small files in the published format, whose tokenizer and generator fit together."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = published_checkpoints.write_lightning(folder / "tokenizer.ckpt")
    fields = {**published_checkpoints.GENERATOR_FIELDS, "latent_dim": 12, "num_heads": 16}
    generator = Generator(**fields)
    state = convert.generator_state_dict(random_params(generator), generator)
    torch_archive.save(folder / "places_large.ckpt", convert.published_checkpoint("generator", state))
    return {path.name: path.read_bytes() for path in (tokenizer, folder / "places_large.ckpt")}


def test_a_model_is_loaded_by_address_and_by_link(hub, files, start):
    hub.add("owner/name", {**files, "half/model.safetensors": files["model.safetensors"]})
    program = start()
    found = program.call("load", "hf://owner/name", precision="tf32")
    assert found["weights"] == weights_id(local_model()) and found["classes"] == ["cat", "dog", "eel"]
    assert (found["precision"], found["dtype"]) == ("tf32", "float32")
    assert [line for line in program.call("log") if "hf://owner/name is at commit" in line]
    links = "hf://owner/name@main/half", f"{hub.url}/owner/name/blob/main/half/model.safetensors"
    assert {program.call("load", link)["weights"] for link in links} == {found["weights"]}
    assert program.call("load", "hf://owner/name", dtype="bfloat16")["dtype"] == "bfloat16"
    assert hub.downloads().count("model.safetensors") == 1  # Both have the same content.
    assert start(HF_HUB_OFFLINE="1").call("load", "hf://owner/name")["weights"] == found["weights"]


@pytest.mark.slow
def test_a_model_of_another_library_is_refused_before_its_weights_are_fetched(hub, files, start):
    for name, config in (("llama", b'{"architectures": ["Llama"]}'), ("broken", b"{"), ("list", b"[1]")):
        hub.add(f"owner/{name}", {**files, "config.json": config})
        message = start().error("load", f"hf://owner/{name}")
        assert message.startswith(f"hf://owner/{name} holds no model of eqjax") and "eqjax.push_to_hub" in message
    assert "model.safetensors" not in hub.downloads()


@pytest.mark.slow
def test_a_repository_without_configuration_is_read_by_its_weights(hub, files, start):
    hub.add("owner/bare", {"model.safetensors": files["model.safetensors"]})
    found = start().call("load", "hf://owner/bare")
    assert start(HF_HUB_OFFLINE="1").call("load", "hf://owner/bare") == found


def test_a_cached_file_that_was_changed_is_refused_with_the_way_out(hub, files, start):
    hub.add("owner/name", files)
    program = start()
    path = pathlib.Path(program.call("resolve", "hf://owner/name")).resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = program.error("load", "hf://owner/name")
    assert "is damaged" in message and f"delete {path}, and it is made again" in message


def test_a_bare_name_is_no_address_but_names_it(start):
    message = start().error("load", "owner/name")
    assert (
        "no weights file at owner/name" in message and "A model of the Hugging Face Hub is hf://owner/name." in message
    )


@pytest.mark.slow
def test_the_published_files_are_converted_once(hub, published, start, tmp_path):
    hub.add(PUBLISHED, published)
    program = start()
    found = program.call("load", "places-large")
    assert found["scale"] == 0.05493 and found["classes"] is None
    assert program.call("sample", "places-large", 2) == [1, 32, 4, 3]
    (path,) = (tmp_path / "home" / "eqjax").glob("places-large-*.safetensors")
    assert pretrained.load(path).notes == f"EMA weights of tokenizer.ckpt, places_large.ckpt of hf://{PUBLISHED}"
    hub.requests.clear()
    assert start(HF_HUB_OFFLINE="1").call("load", "places-large") == found
    assert not hub.requests
    # The converted file is enough, also on a machine without the Hub's cache.
    other = start(home=tmp_path / "other", HF_HUB_OFFLINE="1", EQJAX_WEIGHTS=str(tmp_path / "home" / "eqjax"))
    assert other.call("load", "places-large") == found


@pytest.mark.slow
def test_several_processes_convert_the_published_files_once(hub, published, start):
    hub.add(PUBLISHED, published)
    programs = [start() for _ in range(2)]
    for program in programs:
        program.begin("resolve", "places-large")
    assert len({program.answer()["value"] for program in programs}) == 1
    assert sorted(hub.downloads()) == ["places_large.ckpt", "tokenizer.ckpt"]
    assert len([line for program in programs for line in program.call("log") if "Converted places-large" in line]) == 1


@pytest.mark.slow
def test_published_files_of_another_sha256_are_refused_and_not_read(hub, published, start, tmp_path):
    hub.add(PUBLISHED, published)
    program = start()
    program.call("set_published", "0" * 64)
    message = program.error("load", "places-large")
    assert f"the copy of hf://{PUBLISHED}/tokenizer.ckpt has SHA-256" in message and f"expected {'0' * 64}" in message
    assert not list((tmp_path / "home" / "eqjax").glob("*.safetensors"))


def test_the_published_name_without_a_network_says_what_to_do(start):
    message = start(HF_HUB_OFFLINE="1").error("load", "places-large")
    assert "is not in the cache" in message and "`eqjax hub download`" in message
