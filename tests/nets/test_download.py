"""Files of the frozen networks: loading, digests and downloads."""

import dataclasses
import functools
import hashlib
import http.server
import json
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import addresses, convert, nets
from eqjax.convert import torch_archive
from eqjax.nets import download
from tests import frozen_network_files, published_checkpoints


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    frozen_network_files.narrow(monkeypatch)


# --- Loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lpips", "dino"])
def test_a_network_is_loaded_from_its_files(name, tmp_path, monkeypatch):
    frozen_network_files.write(name, tmp_path)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    module, params = nets.load(name, dtype=jnp.bfloat16)
    assert module == download.NETWORKS[name].module.clone(dtype=jnp.bfloat16)
    state = functools.reduce(dict.__or__, frozen_network_files.arrays(name).values())
    jax.tree.map(np.testing.assert_array_equal, params, download.NETWORKS[name].convert(state, module))


def test_the_folder_is_an_argument_a_variable_or_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EQJAX_WEIGHTS", raising=False)
    assert addresses.weights_folder() == str(tmp_path / ".cache" / "eqjax")
    frozen_network_files.write("dino", tmp_path / "here")
    with pytest.raises(FileNotFoundError):
        nets.load("dino")
    nets.load("dino", tmp_path / "here")


def test_a_missing_file_is_named_with_its_contents_and_both_ways_to_get_it(tmp_path):
    _, linear = frozen_network_files.write("lpips", tmp_path)
    linear.unlink()
    with pytest.raises(FileNotFoundError) as error:
        nets.load("lpips", tmp_path)
    message = str(error.value)
    assert f"'lpips' needs lpips_vgg.pth, and there is no file {linear} " in message
    assert "5 arrays, lin0.model.1.weight (1, 2, 1, 1) … lin4.model.1.weight (1, 3, 1, 1)." in message
    assert "EQJAX_WEIGHTS" in message and "eqjax fetch-weights lpips\n" in message
    assert (
        f"download https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1 and put it there as {linear}"
        in message
    )


def test_other_arrays_are_listed(tmp_path):
    (path,) = frozen_network_files.write("dino", tmp_path)
    state = frozen_network_files.arrays("dino")[path.name]
    state["surprise"] = state.pop("blocks.1.attn.proj.bias")
    state["cls_token"] = np.zeros((1, 2, 8), np.float32)
    torch_archive.save(path, state)
    with pytest.raises(nets.FrozenWeightsError) as error:
        nets.load("dino", tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "unknown in the source (1):\n  surprise" in message
    assert "missing in the source (1):\n  blocks.1.attn.proj.bias (8,)" in message
    assert "cls_token: source (1, 2, 8), expected (1, 1, 8)" in message
    assert "Expected: dino_deitsmall16_pretrain.pth, a PyTorch file with 28 arrays" in message
    assert "eqjax fetch-weights dino" in message
    assert not (tmp_path / f"{path.name}.json").exists()  # The digest of a wrong file is not recorded.


@pytest.mark.parametrize("content", [b"<html>404</html>", b"PK\x03\x04 and then nothing", b""])
def test_damaged_files_are_refused(content, tmp_path):
    path = tmp_path / "dino_deitsmall16_pretrain.pth"
    path.write_bytes(content)
    with pytest.raises(nets.FrozenWeightsError, match=rf"(?s){path}.*Expected: .*eqjax fetch-weights dino"):
        nets.load("dino", tmp_path)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="called 'vgg'; there are lpips, dino, dinov2, inception"):
        nets.load("vgg")


# --- Digests -----------------------------------------------------------------------------------------


def test_a_file_is_remembered_when_first_seen_and_compared_from_then_on(tmp_path):
    (path,) = frozen_network_files.write("dino", tmp_path)
    nets.load("dino", tmp_path)
    record = tmp_path / f"{path.name}.json"
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    nets.load("dino", tmp_path)
    state = frozen_network_files.arrays("dino")[path.name]
    torch_archive.save(path, {key: array + 1 for key, array in state.items()})
    with pytest.raises(nets.FrozenWeightsError, match=f"{path} has changed: .* delete {record}; otherwise"):
        nets.load("dino", tmp_path)
    record.unlink()
    nets.load("dino", tmp_path)
    digest = json.dumps({"sha256": "0" * 64})
    for text in ("[]", '{"sha256": 3}', '{"sha256": "' + "0" * 63 + '"}', "[" * 10_000, digest + " " * 2**14):
        record.write_text(text)
        with pytest.raises(nets.FrozenWeightsError, match=f"{record} cannot be read; expected the SHA-256 .* delete"):
            nets.load("dino", tmp_path)


def publish(monkeypatch, name, **changes):
    """Changes the registered (only) file of a network for one test, and returns it."""
    network = download.NETWORKS[name]
    file = dataclasses.replace(network.files[0], **changes)
    monkeypatch.setitem(download.NETWORKS, name, dataclasses.replace(network, files=(file,)))
    return file


def test_a_file_put_there_by_hand_with_another_digest_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    frozen_network_files.write("dino", tmp_path)
    publish(monkeypatch, "dino", sha256="not-hex")
    with caplog.at_level(logging.WARNING, logger="absl"):
        nets.load("dino", tmp_path)
    assert "the published file not-hex…" in caplog.text


# --- Fetching ----------------------------------------------------------------------------------------


@pytest.fixture(name="published")
def _published(tmp_path, monkeypatch):
    """(file, its path) of a DINO that is published under a file:// address."""
    folder = tmp_path / "published"
    (path,) = frozen_network_files.write("dino", folder)
    return publish(monkeypatch, "dino", url=path.as_uri()), path


def test_a_file_is_fetched_once_with_progress(published, tmp_path):
    file, source = published
    steps = []
    path, downloaded = download.fetch("dino", file, tmp_path / "new", on_progress=lambda *step: steps.append(step))
    size = source.stat().st_size
    assert downloaded and steps[-1] == (size, size)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [file.name, f"{file.name}.json"]
    nets.load("dino", tmp_path / "new")
    source.unlink()
    assert download.fetch("dino", file, tmp_path / "new") == (path, False)


def test_a_wrong_file_that_is_there_is_refused(published):
    file, source = published
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(nets.FrozenWeightsError, match="truncated"):
        download.fetch("dino", file, source.parent)


def test_without_a_network_the_message_tells_which_file_to_put_where(published, tmp_path):
    file, source = published
    source.unlink()
    target = tmp_path / "new" / file.name
    with pytest.raises(nets.FrozenWeightsError) as error:
        download.fetch("dino", file, tmp_path / "new")
    message = str(error.value)
    assert f"{file.url} cannot be fetched" in message and f"put it here as {target}\n" in message
    assert "Expected: dino_deitsmall16_pretrain.pth, a PyTorch file with 28 arrays" in message
    assert not list((tmp_path / "new").iterdir())


def test_a_wrong_download_does_not_get_the_name(published, tmp_path):
    file, source = published
    other = dataclasses.replace(file, sha256="00000000")
    with pytest.raises(nets.FrozenWeightsError, match="should begin with 00000000"):
        download.fetch("dino", other, tmp_path / "new")
    source.write_text("<html>Not found</html>")
    with pytest.raises(nets.FrozenWeightsError, match=f"the download from {file.url} is not .*error page"):
        download.fetch("dino", file, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


class Flaky(http.server.BaseHTTPRequestHandler):
    """Promises more than it sends."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    def log_message(self, *_):
        pass


def test_a_broken_connection_leaves_nothing(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/dino.pth"
        with pytest.raises(nets.FrozenWeightsError, match="cannot be fetched"):
            download.fetch("dino", download.NETWORKS["dino"].files[0], tmp_path, url)
        server.shutdown()
    assert not list(tmp_path.iterdir())


# --- The published files -----------------------------------------------------------------------------


def test_files_must_hold_the_arrays_of_the_published_ones(monkeypatch):
    monkeypatch.undo()
    manifests = published_checkpoints.read_json("frozen_manifests.json.gz")
    published = {
        "vgg16-397923af.pth": manifests["vgg16_torchvision"],
        "lpips_vgg.pth": manifests["lpips_lins"],
        "dino_deitsmall16_pretrain.pth": manifests["dino_deitsmall16"],
        "dinov2_vitb14_pretrain.pth": manifests["dinov2_vitb14"],
    }
    for name in ("lpips", "dino", "dinov2"):
        for file in download.NETWORKS[name].files:
            used = {
                key: tuple(shape)
                for key, shape in published[file.name].items()
                if not convert.unused_in_frozen(name, key)
            }
            assert download._expected_shapes(name, file) == used
            assert f"{len(used)} arrays" in download.describe(name, file)
