"""Code blocks of the documentation, and what stands in for large models and folders when tests run them."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent.parent
# Pages whose blocks are run. Those of other pages are quoted from elsewhere, or are no code.
PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".docs" / "how_to").glob("*.md")),
    ".docs/index.md",
    ".docs/tutorials/index.md",
    ".github/CONTRIBUTING.md",
    "colabs/README.md",
]

# Commands that no test runs: how they begin, and why.
NOT_RUN = {
    "make demo": "installs an environment; its commands are run by tests of eqjax demo",
    "make test": "these are the tests",
    "EQJAX_TEST_PLATFORM=cuda make test": "these are the tests, on a GPU",
    "make lint": "CI runs it",
    "make docs": "CI runs it",
    "make gpu-compile": "installs the GPU compiler; its command is tested by itself",
    "eqjax check": "a slow test runs the same cases",
    "eqjax benchmark --quick": "takes minutes on a CPU; other tests measure rows, and check the set",
    "eqjax benchmark sampling training": "takes minutes on a CPU; other tests measure rows, and check combinations",
    "eqjax gpu-compile": "needs the GPU compiler; `make test-gpu-compile` runs it",
    "eqjax fetch-weights": "downloads from the publishers; tests of the command fetch from a mirror",
    "eqjax hub download": "asks the Hub; tests of the Hub ask a server that stands in for it",
    "eqjax hub upload": "pushes to the Hub; tests of the Hub push to a server that stands in for it",
    "eqjax.push_to_hub(": "pushes to the Hub; tests of the Hub push to a server that stands in for it",
    "eqjax serve": "serves pages until it is stopped; tests of the command end it",
    "docker ": "needs Docker; another test reads the file",
    "from google.colab": "needs Colab",
    "pip install": "installs packages",
    ".venv/bin/python -m pip": "installs packages",
    "jupyter lab": "serves pages until it is stopped; another test runs the notebooks",
    ".venv/bin/jupyter lab": "serves pages until it is stopped; another test runs the notebooks",
    "python -m colabs.build": "writes into the repository; another test compares what it would write",
}

# What a test runs instead, from the first to the last.
_SMALLER = [
    # Training, plans and benchmarks: the variant `tiny` of the same configuration.
    (r"--config=((?:imagenet|places|photos)_\w+)(?=\s|$)", r"--config=\1:tiny"),
    (r"--config=((?:imagenet|places|photos)_\w+):(?!\S*\btiny\b)(\S+)", r"--config=\1:\2,tiny"),
    (r"--config\.metrics\.every=\d+", "--config.metrics.every=1 --config.eval_every=1 --config.metrics.num_images=4"),
    (r"--config\.batch_size=\d+", "--config.batch_size=8"),
    (r"data:2,fsdp:4", "data:2,fsdp:2"),
    (r"--config\.data\.resize=\d+", "--config.data.resize=16"),
    (r"--data\.(height|width|resize)=\d+", r"--data.\1=16"),
    # What a command measures of any model and images: the shipped ones take minutes without XLA's optimizations.
    (
        r"analyze (columns|equivariance) --weights=photos",
        r"analyze \1 --weights=runs/generator --data.source=folder --data.root=/path/to/root",
    ),
    (r"--num_images=\d+", "--num_images=4"),
    (r"--num_flow_steps=\d+", "--num_flow_steps=2"),
    (r"--num_columns=6250", "--num_columns=40"),
    (r"implicit_probability=0\.5", "implicit_probability=1"),
    (r"VIRTUAL_imagenet256_labeled\.npz", "reference.npz"),
    # The published files: small ones in the same format, whose number of heads no table knows.
    (r"--input=places_large\.ckpt", "--input=places_large.ckpt --num_heads=2"),
    (r"places-large|hf://owner/name(@main/best\.safetensors)?", "stand_in.safetensors"),
    # Python.
    (r"num_flow_steps=\d+", "num_flow_steps=2"),
    (r"modulation_times=\d+", "modulation_times=2, num_flow_steps=3"),
    (r"num_columns=128\b", "num_columns=4"),
    (r"num_columns=144\b", "num_columns=6"),
]
# Calls that sample, up to their last parenthesis; a panorama that resumes has its options.
_SAMPLES = r"((?:\.sample|outpaint|panorama)\((?![^()]*state=)(?:[^()]|\([^()]*\))+)\)"


def blocks(page):
    """Returns the code blocks of a page that are Python or shell: (language, text)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, body) for language, body in found if language in ("python", "bash")]


def commands(body):
    """Returns the commands of a shell block: continued lines joined, comments left out."""
    found, pending = [], ""
    for line in body.replace("\\\n", " ").splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # A quotation is still open.
            continue
        if words:
            found.append(pending)
        pending = ""
    assert not pending, f"a quotation has no end: {pending}"
    return found


def words(command):
    """Returns ({variable: value}, [word, …]) of a command."""
    parts = shlex.split(command, comments=True)
    count = next((i for i, part in enumerate(parts) if not re.match(r"[A-Z_]+=", part)), len(parts))
    return dict(part.split("=", 1) for part in parts[:count]), parts[count:]


def smaller(text):
    """Returns code or a command with small models and few steps."""
    for pattern, replacement in _SMALLER:
        text = re.sub(pattern, replacement, text)
    return re.sub(
        _SAMPLES, lambda found: found[0] if "num_flow_steps" in found[0] else f"{found[1]}, num_flow_steps=2)", text
    )


def smaller_command(command, root):
    """Returns the words of a command with small models, and with a folder of images at `root`."""
    variables, parts = words(smaller(command))
    parts = [part.replace("/path/to/parquet", "parquet") for part in parts]
    parts = [re.sub(r"/path/to/root|/data/\w+/\w+", str(root), part) for part in parts]
    command = parts[parts.index("--") + 1 :] if "--" in parts else parts  # Without a starter.
    if command[:1] == ["eqjax"]:
        if command[1] in ("train-tokenizer", "train-generator"):
            # Regularized steps of every kind and scale are programs of their own: one is enough.
            parts += [f"--config.total_steps={1 if any('.equivariance.' in part for part in parts) else 2}"]
            # Muon takes twice the time to compile.
            parts += [] if any("optimizer.name" in part for part in parts) else ["--config.optimizer.name=adamw"]
        if any("soft_power" in part for part in parts):
            parts += ["--config.objective.equivariance.soft_steps=2"]
        if "--config=photos_generator:tiny" in parts and not any("tokenizer_weights" in part for part in parts):
            parts += ["--config.tokenizer_weights=photos_tiny.safetensors"]  # The shipped one does not fit.
        if command[1] in ("sample", "demo") and not any("num_flow_steps" in part for part in parts):
            parts += ["--num_flow_steps=2"]
        if command[1:3] == ["evaluate", "generation"]:
            parts += ["--num_flow_steps=2", "--num_stored_features=4"]
        if command[1:3] in (["analyze", "columns"], ["analyze", "equivariance"]):
            parts += ["--num_columns=4", "--num_batches=2"]
        if command[1:3] == ["analyze", "symmetries"]:
            parts += ["--num_columns=4", "--num_batches=2", "--critic_steps=2"]
        if command[1] == "measure-quality":
            parts += ["--num_columns=4", "--num_images=2", "--num_flow_steps=2"]
    return variables, parts
