r"""Fetches models from the Hugging Face Hub, and pushes them to it with a model card.

    eqjax hub download hf://owner/name places-large       # into the caches, for machines without a network
    eqjax hub card runs/generator owner/name --output=outputs/card
    eqjax hub upload runs/generator owner/name --results_folder=outputs/evaluation --license=mit

"download" prints the path of each weights file; published PyTorch files are converted the first time. "card" writes
everything that "upload" pushes into a folder, to look at. A model is a weights file, a workdir or a name. Log in with
`hf auth login`, or set HF_TOKEN, for private and gated models and for pushing.
"""

import os
from typing import Any

from absl import flags, logging

from eqjax.cli.command_line import define_folder, flag_group

# Flags of what is pushed, and of how.
_CONTENTS, _PUSH = ("results_folder", "samples", "license", "base_model"), ("revision", "private", "message")
_WORDS = "download MODEL …, upload MODEL owner/name, or card MODEL owner/name"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        flags.DEFINE_string("results_folder", None, "Output of `eqjax evaluate`, for results.json and the card.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_string("samples", None, "Image file; newest of the workdir, or drawn, by default; none for none.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_string("license", None, "License of the weights, as the Hub abbreviates it.", flag_values=values)
        flags.DEFINE_string("base_model", None, "Model that the weights were made from, owner/name.",
                            flag_values=values)  # fmt: skip
    with flag_group(values, "upload"):
        flags.DEFINE_string("revision", None, "Branch to push to; made if missing. main by default.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_bool("private", False, "Make a new repository private.", flag_values=values)
        flags.DEFINE_string("message", "Upload a model of eqjax", "Message of the commit.", flag_values=values)
    with flag_group(values, "card"):
        define_folder(values, os.path.join("outputs", "card"), "Folder to write.")


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Does what the first word says.

    Raises:
      ValueError: words are missing or unknown, or a flag has no effect.
      OSError: the Hub refuses, or cannot be reached.
    """
    action, rest = (words or [""])[0], words[1:]
    counts = {"download": rest, "upload": len(rest) == 2, "card": len(rest) == 2}
    if not counts.get(action):
        raise ValueError(f"expected {_WORDS}; got {' '.join(words) or 'nothing'}.")
    read = {"download": (), "upload": (*_CONTENTS, *_PUSH), "card": (*_CONTENTS, "output")}[action]
    unused = [name for name in (*_CONTENTS, *_PUSH, "output") if name not in read and args[name].present]
    if unused:
        raise ValueError(f"--{', --'.join(unused)} has no effect with {action}.")
    if action == "download":
        for source in rest:
            download(source)
    elif action == "upload":
        upload(rest[0], rest[1], args)
    else:
        write_card(rest[0], rest[1], args)


def download(source: str) -> None:
    """Fetches a model, reads it once, and prints the path of its file."""
    from eqjax import loading

    path, weights = loading.resolve_path(source), loading.load_weights(source)
    logging.info("%s holds %s.", source, " and ".join(weights.modules))
    print(path)


def upload(source: str, repo: str, args: flags.FlagValues) -> None:
    """Pushes a model and prints its address."""
    from eqjax.hub.upload import push_to_hub

    address = push_to_hub(
        source, repo, revision=args.revision, private=args.private, message=args.message, **_contents(args)
    )
    print(address)


def write_card(source: str, repo: str, args: flags.FlagValues) -> None:
    """Writes the files of a repository."""
    from eqjax.addresses import local_path
    from eqjax.hub.address import check_repo
    from eqjax.hub.upload import prepare

    check_repo(repo, repo)
    folder = local_path(args.output, "--output")
    os.makedirs(folder, exist_ok=True)
    prepare(folder, source, repo, **_contents(args))
    logging.info("Wrote %s: %s.", folder, ", ".join(sorted(os.listdir(folder))))


def _contents(args: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags that say what is pushed, as arguments of `prepare`."""
    samples = {None: True, "none": False}.get(args.samples, args.samples)
    return dict(results_folder=args.results_folder, samples=samples, license=args.license, base_model=args.base_model)
