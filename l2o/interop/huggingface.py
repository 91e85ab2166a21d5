"""Downloads from and uploads to the Hugging Face Hub, with every failure as one line.

What huggingface_hub honours is honoured here: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, `hf auth login`.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class HubError(Exception):
    """Why the Hub did not give or take something; one line."""


def download(repository: str, names: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder of the cache that holds these files, all of one commit; what is there is not loaded again.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None is main.

    Raises:
        HubError: if they are not there, or the Hub cannot be reached and they are not in the cache.
    """
    hub = _library()
    trouble = _ask(hub, repository, names[0], revision)
    if trouble is not None and isinstance(trouble, (hub.errors.EntryNotFoundError, hub.errors.RevisionNotFoundError)):
        raise HubError(_explain(hub, trouble, repository, revision)) from trouble  # the cache should not contradict it
    try:
        arguments: dict[str, Any] = {"local_files_only": trouble is not None}
        first = Path(hub.hf_hub_download(repository, names[0], revision=revision, **arguments))
        for name in names[1:]:
            hub.hf_hub_download(repository, name, revision=first.parent.name, **arguments)
    except Exception as error:  # several libraries' errors, other ones from version to version
        cache = "" if trouble is None else f"; it is not in the cache {hub.constants.HF_HUB_CACHE} either"
        cause = trouble or error
        raise HubError(_explain(hub, cause, repository, revision) + cache) from cause
    return first.parent


def upload(repository: str, files: Mapping[str, bytes], private: bool, message: str) -> str:
    """Make one commit of these files to a repository, which is created if there is none; return its address.

    Args:
        private: create the repository as a private one; says nothing about one that exists.

    Raises:
        HubError: if the Hub cannot be reached or refuses.
    """
    hub = _library()
    trouble = _ask(hub, repository, next(iter(files)), None)
    if trouble is not None and not hasattr(trouble, "response"):  # no answer at all
        raise HubError(_explain(hub, trouble, repository, None)) from trouble
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # as above
        raise HubError(_explain(hub, error, repository, None)) from error
    return str(address)


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise HubError("hf:// addresses need the extra hub: pip install 'l2o[hub]'") from error


def _ask(hub: Any, repository: str, name: str, revision: str | None) -> Exception | None:
    """Return what goes wrong in asking for a file, if anything; once, where the library tries again for 20 seconds."""
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, name, revision=revision))
    except Exception as error:  # as above
        return error
    return None


def _explain(hub: Any, error: Exception, repository: str, revision: str | None) -> str:
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    what = f"hf://{repository}" + (f"@{revision}" if revision else "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what}: HF_HUB_OFFLINE is set, which forbids to use {endpoint}"
    if isinstance(error, errors.GatedRepoError):
        return f"{what} is gated: ask for access on its page at {endpoint}, then log in: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: the repository has no revision {revision}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what} has no rule.json and rule.safetensors, so it is no checkpoint of l2o"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"{what}: {endpoint} knows no such repository, or shows it only to others; check it, or: hf auth login"
    if status == 403:
        return f"{what}: {endpoint} does not allow this; a token with the right to write is needed: hf auth login"
    return f"{what}: {endpoint} cannot be used, {type(error).__name__}: {' '.join(str(error).split()) or 'no text'}"
