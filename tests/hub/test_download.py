"""Fetching files from the Hub: caches, machines without a network, permissions, bounds, damage, several processes."""

import pathlib

import pytest

from tests.hub_server import TOKEN

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(name="repo", autouse=True)
def _repo(hub):
    return hub.add("owner/name", {"model.safetensors": WEIGHTS, "config.json": b"{}"})


def test_a_file_is_fetched_once_and_its_size_is_said_before(hub, repo, start):
    program = start()
    path = pathlib.Path(program.call("fetch", "owner/name", "model.safetensors"))
    assert path.read_bytes() == WEIGHTS and path.parent.name == repo.commit("main")
    assert [line for line in program.call("log") if "Fetching" in line and "0.0 MB" in line]
    assert program.call("fetch", "owner/name", "model.safetensors") == str(path)
    assert hub.downloads() == ["model.safetensors"]


def test_a_branch_that_moves_is_followed_and_a_commit_is_not_asked_for(hub, repo, start):
    program = start()
    first = repo.commit("main")
    program.call("fetch", "owner/name", "model.safetensors")
    repo.revisions["main"] = {"model.safetensors": b"newer"}
    assert pathlib.Path(program.call("fetch", "owner/name", "model.safetensors")).read_bytes() == b"newer"
    hub.requests.clear()
    old = program.call("fetch", "owner/name", "model.safetensors", revision=first)
    assert pathlib.Path(old).read_bytes() == WEIGHTS and not hub.requests


def test_what_is_in_the_cache_needs_no_network(hub, start):
    path = start().call("fetch", "owner/name", "model.safetensors")
    hub.requests.clear()
    assert start(HF_HUB_OFFLINE="1").call("fetch", "owner/name", "model.safetensors") == path
    assert not hub.requests
    lost = start(HF_ENDPOINT="http://127.0.0.1:9")
    assert lost.call("fetch", "owner/name", "model.safetensors") == path
    assert [line for line in lost.call("log") if "cannot be reached" in line and "from the cache" in line]
    hub.broken = True
    assert start().call("fetch", "owner/name", "model.safetensors") == path


def test_what_is_not_in_the_cache_names_both_ways_out(hub, start, tmp_path):
    for variables, reason in (({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
                              ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connect")):  # fmt: skip
        message = start(**variables).error("fetch", "owner/name", "model.safetensors", revision="v1")
        assert message.startswith("hf://owner/name@v1/model.safetensors is not in the cache ") and reason in message
        assert str(tmp_path / "home" / "hub") in message
        assert "`eqjax hub download`" in message and "HF_HOME" in message
    hub.broken = True
    assert "the Hub answers with an error" in start().error("fetch", "owner/name", "model.safetensors")


def test_missing_things_are_told_apart(hub, start):
    program = start()
    message = program.error("fetch", "owner/nam", "model.safetensors")
    assert "the Hub has no model owner/nam, or it is private" in message and "`hf auth login`" in message
    message = program.error("fetch", "owner/name", "model.safetensors", revision="v9")
    assert "owner/name has no revision 'v9'" in message and f"{hub.url}/owner/name/commits" in message
    message = program.error("fetch", "owner/name", "tokenizer.safetensors")
    assert "owner/name has no file tokenizer.safetensors at revision main" in message and "/tree/main" in message
    assert "Repo id" in program.error("fetch", "owner//name", "model.safetensors")
    assert not hub.downloads()


def test_private_and_gated_models_need_a_token(hub, start):
    hub.add("owner/private", {"model.safetensors": WEIGHTS}, private=True)
    hub.add("owner/gated", {"model.safetensors": WEIGHTS}, gated=True)
    stranger, friend = start(), start(HF_TOKEN=TOKEN)
    assert "or it is private" in stranger.error("fetch", "owner/private", "model.safetensors")
    message = stranger.error("fetch", "owner/gated", "model.safetensors")
    assert f"owner/gated is gated: accept its conditions at {hub.url}/owner/gated" in message and "HF_TOKEN" in message
    for name in ("private", "gated"):
        assert pathlib.Path(friend.call("fetch", f"owner/{name}", "model.safetensors")).read_bytes() == WEIGHTS


def test_files_beyond_the_bound_are_refused_before_they_are_fetched(hub, start):
    program = start()
    assert "at most 0 MB are fetched" in program.error("fetch", "owner/name", "config.json", max_bytes=1)
    hub.claimed_size = 2**40
    assert "has 1,099,512 MB; at most 68,719 MB" in program.error("fetch", "owner/name", "model.safetensors")
    assert not hub.downloads()


def test_a_damaged_download_is_not_kept(hub, start):
    program = start()
    hub.damage = True
    message = program.error("fetch", "owner/name", "model.safetensors")
    assert "the copy of hf://owner/name/model.safetensors has SHA-256" in message and "fetch it again" in message
    hub.damage = False
    assert pathlib.Path(program.call("fetch", "owner/name", "model.safetensors")).read_bytes() == WEIGHTS


def test_of_several_processes_one_fetches(hub, start):
    programs = [start() for _ in range(3)]
    for program in programs:
        program.begin("fetch", "owner/name", "model.safetensors")
    paths = {program.answer()["value"] for program in programs}
    assert len(paths) == 1 and hub.downloads() == ["model.safetensors"]


def test_a_cache_that_cannot_be_written_to_is_named(start, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").write_text("A file where the cache should be.")
    message = start().error("fetch", "owner/name", "model.safetensors")
    assert "set HF_HOME to a folder of yours" in message and str(tmp_path / "home" / "hub") in message
