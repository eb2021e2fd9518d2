"""The command that builds a cache of latents."""

import signal
import time

from absl import flags
import pytest

from eqjax import pretrained
from eqjax.cli import cache_latents, command_line
from eqjax.cli.main import COMMANDS
from tests import subprocesses
from tests.latent_cache import tiny_cache

WEIGHTS = "--config.tokenizer_weights=tokenizer.safetensors"


@pytest.mark.slow
def test_process_without_a_coordinator_stops_on_sigterm(tmp_path):
    pretrained.save(tmp_path / "tokenizer.safetensors", tiny_cache.make_weights())
    command = ["eqjax", "cache-latents", "--config=configs/photos_generator.py:tiny", "--num_crops=500"]
    command += [f"--config.tokenizer_weights={tmp_path}/tokenizer.safetensors", f"--output={tmp_path}/cache"]
    command += ["--config.data.classes=('brick',)", "--config.data.num_threads=1", "--compilation_cache="]
    process = subprocesses.start(*command, NUM_PROCESSES="2", PROCESS_ID="0")
    while process.poll() is None and not (tmp_path / "cache" / "spec.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and "The same command makes the missing shards" in output, output
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=photos_tokenizer", "--output=new"], "this is a tokenizer's configuration"),
        (
            ["--config=photos_generator", "--output=new", "--config.precision=low", WEIGHTS],
            "precision='low' must be one of",
        ),
        (
            ["--config=photos_generator:tiny", "--output=file", WEIGHTS],
            "--output=file: this is a file; give a folder",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused_with_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cache_latents.signal, "signal", lambda *_: None)
    (tmp_path / "file").write_text("notes")
    pretrained.save("tokenizer.safetensors", tiny_cache.make_weights())
    with pytest.raises((ValueError, flags.Error), match=message):
        cache_latents.run(command_line.parse(COMMANDS["cache-latents"], arguments)[0])
    assert (tmp_path / "file").read_text() == "notes" and not (tmp_path / "new").exists()


def test_a_stop_that_the_code_around_the_handler_drops_ends_the_command_at_the_next_check():
    stop = cache_latents._Stop()
    stop.check()
    with pytest.raises(SystemExit):
        stop()
    with pytest.raises(SystemExit, match="75"):
        stop.check()
