"""Addresses of the Hub: what is one, what it names, and what is refused."""

import pytest

from eqjax.hub.address import HubAddress, parse

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://owner/name", HubAddress("owner/name")),
        ("hf://owner/name/", HubAddress("owner/name")),
        ("HF://owner/na.me-1_x", HubAddress("owner/na.me-1_x")),
        ("hf://models/owner/name", HubAddress("owner/name")),
        ("hf://models/name", HubAddress("models/name")),
        ("hf://owner/name@v1.0", HubAddress("owner/name", "v1.0")),
        (f"hf://owner/name@{COMMIT}", HubAddress("owner/name", COMMIT)),
        ("hf://owner/name@refs/pr/3", HubAddress("owner/name", "refs/pr/3")),
        ("hf://owner/name@refs/pr/3/a.safetensors", HubAddress("owner/name", "refs/pr/3", "a.safetensors")),
        ("hf://owner/name@feature%2Fx/a.safetensors", HubAddress("owner/name", "feature/x", "a.safetensors")),
        ("hf://owner/name/tokenizer.safetensors", HubAddress("owner/name", None, "tokenizer.safetensors")),
        ("hf://owner/name@v1/large", HubAddress("owner/name", "v1", "large/model.safetensors")),
        ("hf://owner/name/large-v1.5", HubAddress("owner/name", None, "large-v1.5/model.safetensors")),
        ("https://huggingface.co/owner/name", HubAddress("owner/name")),
        ("https://hf.co/owner/name/", HubAddress("owner/name")),
        ("https://huggingface.co/owner/name/tree/v1", HubAddress("owner/name", "v1")),
        ("https://huggingface.co/owner/name/tree/v1/a", HubAddress("owner/name", "v1", "a/model.safetensors")),
        ("https://huggingface.co/a/b/blob/main/c.safetensors", HubAddress("a/b", "main", "c.safetensors")),
        ("https://huggingface.co/owner/name/resolve/main/a/b.safetensors?download=true",
         HubAddress("owner/name", "main", "a/b.safetensors")),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F1", HubAddress("owner/name", "refs/pr/1")),
        ("https://huggingface.co/owner/name/tree/refs/pr/1", HubAddress("owner/name", "refs/pr/1")),
    ],
)  # fmt: skip
def test_addresses_name_a_file(source, expected):
    assert parse(source) == expected


@pytest.mark.parametrize("source", ["owner/name", "photos", "/a/b", "gs://a/b", "https://x.org/a/b", ""])
def test_paths_and_other_addresses_are_none(source):
    assert parse(source) is None


@pytest.mark.parametrize("address", ["hf://owner/name", "hf://owner/name@v1", "hf://owner/name@v1/a/b.safetensors"])
def test_an_address_is_written_as_it_is_read(address):
    assert str(parse(address)) == address


def test_the_host_of_the_endpoint_is_the_hub_too(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert parse("https://mirror.example/owner/name") == HubAddress("owner/name")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://", "names no model"),
        ("hf://owner", "names no model"),
        ("hf://owner/", "names no model"),
        ("hf:///name", "names no model"),
        ("hf://../name", "names no model"),
        ("hf://owner/na me", "names no model"),
        ("hf://datasets/owner/name", "names no model"),
        ("hf://owner/name@", "no revision after @"),
        ("hf://owner/name/../a.safetensors", "'.' or '..' in its path"),
        ("hf://owner/name//a.safetensors", "an empty part"),
        ("hf://owner/name/model.ckpt", "model.ckpt is not read from the Hub, only .safetensors .* eqjax convert"),
        ("hf://owner/name/pytorch_model.BIN", "only .safetensors"),
        ("hf://owner/name/README.md", "only .safetensors"),
        ("https://huggingface.co/owner", "names no model"),
        ("https://huggingface.co/datasets/owner/name", "names no model"),
        ("https://huggingface.co/owner/name/discussions/1", "not that of a model or a file"),
        ("https://huggingface.co/owner/name/blob", "not that of a model or a file"),
    ],
)
def test_other_things_of_the_hub_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        parse(source)
