"""Fetches files from the Hugging Face Hub into its cache, within bounds, and says what is wrong in one sentence."""

from collections.abc import Callable
import hashlib
import os
import re
from typing import Any

from absl import logging

from eqjax.addresses import weights_folder
from eqjax.io import exclusive
from eqjax.messages import shorten

# Bounds of what is fetched. The largest published model has 6 GB.
MAX_WEIGHTS_BYTES = 2**36
MAX_JSON_BYTES = 2**20
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """A file cannot be fetched from the Hub, or a model not pushed to it; the message names the remedy."""


class MissingFileError(HubError):
    """The repository exists and lacks the file."""


def fetch(repo: str, file: str, revision: str | None = None, *, max_bytes: int = MAX_WEIGHTS_BYTES) -> str:
    """Returns the path of a file of the Hub in its cache, fetched if it is not there yet.

    Without a network, or with HF_HUB_OFFLINE=1, the file is taken from the cache; a full commit hash needs no network
    at all. Of the processes of a host that share a cache, the first one fetches, and the others wait for it. A fetched
    file is compared with the SHA-256 that the Hub states for large ones.

    Args:
      repo: the repository, owner/name.
      file: path of the file in it.
      revision: a branch, tag or commit; None: the main branch.
      max_bytes: the size beyond which the file is not fetched.

    Returns:
      The path, of the form …/snapshots/<commit>/<file>.

    Raises:
      MissingFileError: the repository has no such file.
      HubError: there is no such repository or revision, it needs permission, the file is too large, the download is
        damaged, or the file is not in the cache and there is no network.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        found = cached(repo, file, revision)
        if found is not None:
            return found
    where = f"hf://{repo}{'' if revision is None else f'@{revision}'}/{file}"
    try:
        about = _metadata(repo, file, revision)
    except Exception as error:  # Errors of huggingface_hub and of the library below it, which is not always the same.
        found = None if _is_refusal(error) else cached(repo, file, revision)
        if found is None:
            raise explain(error, where, repo, revision, file) from error
        logging.info("The Hub cannot be reached: %s is taken from the cache, %s.", where, found)
        return found
    if about.size is not None and about.size > max_bytes:
        raise HubError(
            f"{where} has {about.size / 1e6:,.0f} MB; at most {max_bytes / 1e6:,.0f} MB are fetched for such a "
            "file. Is it the one that you mean?"
        )
    lock = os.path.join(weights_folder(), "locks", hashlib.sha256(where.encode()).hexdigest()[:16])
    with exclusive(lock, f"Another process fetches {where}: waiting for it."):
        return _download(repo, file, revision, where, about)


def _download(repo: str, file: str, revision: str | None, where: str, about: Any) -> str:
    import huggingface_hub

    before = cached(repo, file, about.commit_hash)
    if before is None:
        logging.info("Fetching %s, %s, into %s.", where, _megabytes(about.size), _cache_folder())
    try:
        path = huggingface_hub.hf_hub_download(repo, file, revision=revision, library_name="eqjax")
    except Exception as error:
        if before is None:
            raise explain(error, where, repo, revision, file) from error
        return before  # A cache that cannot be written to, or a network that was lost.
    # The name that the Hub gives to the content of a large file is its SHA-256.
    if before is None and re.fullmatch("[0-9a-f]{64}", about.etag or ""):
        try:
            check_sha256(path, about.etag, where)
        except HubError:
            remove_cached(path)
            raise
    return path


def check_sha256(path: str, expected: str, where: str) -> None:
    """Compares a file with its SHA-256.

    Args:
      path: the file, in the Hub's cache.
      expected: 64 hexadecimal digits.
      where: its address, for messages.

    Raises:
      HubError: the file has another one.
    """
    with open(path, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise HubError(
            f"the copy of {where} has SHA-256 {found}, expected {expected}: damaged, or not the published file. Delete "
            f"{os.path.realpath(path)} and fetch it again."
        )


def remove_cached(path: str) -> None:
    """Removes a file from the Hub's cache, where its name is a link to its content."""
    for name in {os.path.realpath(path), path}:
        if os.path.lexists(name):
            os.unlink(name)


def explain(error: Exception, where: str, repo: str, revision: str | None = None, file: str = "") -> HubError:
    """Returns an error of huggingface_hub as one sentence with the way out.

    Args:
      error: the error.
      where: the address, or what was being done.
      repo: the repository.
      revision: the revision that was asked for.
      file: the file that was asked for.
    """
    from huggingface_hub import errors

    page, reason = f"{_endpoint()}/{repo}", _first_line(error)
    sentences: list[tuple[type[Exception], Callable[[], str]]] = [
        (errors.GatedRepoError, lambda: f"{repo} is gated: accept its conditions at {page}, and {_LOGIN}."),
        (errors.RepositoryNotFoundError, lambda: f"the Hub has no model {repo}, or it is private: check the name; for "
            f"a private model {_LOGIN}."),
        (errors.RevisionNotFoundError, lambda: f"{repo} has no revision {revision!r}: give a branch, tag or commit of "
            f"{page}/commits."),
        (errors.LocalEntryNotFoundError, lambda: _no_network(error, where)),
        (errors.EntryNotFoundError, lambda: f"{repo} has no file {file} at revision {revision or 'main'}: its files "
            f"are listed at {page}/tree/{revision or 'main'}; give one as hf://{repo}/FILE."),
        (errors.OfflineModeIsEnabled, lambda: _no_network(error, where)),
        (errors.HFValidationError, lambda: f"{where}: {reason}"),
    ]  # fmt: skip
    for kind, sentence in sentences:
        if isinstance(error, kind):
            missing = kind is errors.EntryNotFoundError
            return MissingFileError(sentence()) if missing else HubError(sentence())
    if isinstance(error, OSError) and error.filename is not None:  # Not of the network.
        return HubError(
            f"{where} cannot be written to the cache {_cache_folder()} ({reason}): set HF_HOME to a folder of yours."
        )
    status = _status(error)
    if status in (401, 403):
        return HubError(f"{where}: the Hub refuses access ({status}): {_LOGIN} with the rights that this needs.")
    if status is not None:
        return HubError(f"{where}: the Hub answers with an error ({reason}): try again later.")
    return HubError(_no_network(error, where))


def _no_network(error: Exception, where: str) -> str:
    reason = "HF_HUB_OFFLINE is set" if _is_offline() else f"{type(error).__name__}: {_first_line(error)}"
    return (
        f"{where} is not in the cache {_cache_folder()} and cannot be fetched ({reason}). On a machine with a network "
        "run `eqjax hub download` with its address and copy the cache, or let HF_HOME be a folder that both share."
    )


def _metadata(repo: str, file: str, revision: str | None) -> Any:
    """Returns size, commit and hash of a file, from the Hub."""
    import huggingface_hub

    if _is_offline():
        raise huggingface_hub.errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    return huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file, revision=revision))


def cached(repo: str, file: str, revision: str | None) -> str | None:
    """Returns the path of a file in the cache, or None; asks nobody."""
    import huggingface_hub

    try:
        return huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=True)
    except (OSError, ValueError):  # LocalEntryNotFoundError is both.
        return None


def _is_refusal(error: Exception) -> bool:
    """Returns whether the Hub has answered, with no; a copy in the cache does not count then."""
    from huggingface_hub import errors

    status = _status(error)
    answers = errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError
    return isinstance(error, (*answers, errors.HFValidationError)) or (status is not None and status < 500)


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error, if the Hub has answered at all."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache_folder() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _first_line(error: Exception) -> str:
    """Returns the beginning of a message; the Hub's have several lines."""
    return shorten((str(error).splitlines() or [""])[0])


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"
