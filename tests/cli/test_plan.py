"""The planning command: its devices and its refusals."""

import subprocess
import sys


def test_unknown_chips_are_refused_before_anything_is_compiled():
    command = [sys.executable, "-m", "eqjax.cli.plan", "--config=configs/imagenet_generator.py", "--chips=H100,abacus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "eqjax plan: unknown chip 'abacus'" in done.stderr, done.stderr


def test_virtual_devices_replace_those_of_the_environment():
    code = "import jax; from eqjax.cli import plan; plan.use_virtual_devices(3); print(jax.device_count('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == "3", done.stderr
