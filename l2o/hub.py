"""Checkpoints on the Hugging Face Hub: hf://owner/name, or hf://owner/name@revision with a branch, tag or commit.

A repository holds what a checkpoint directory holds, `rule.json` and `rule.safetensors`, and a model card. Nothing else
is downloaded, and nothing is unpickled. Needs the extra `hub`; l2o works without it.
"""

import os
import re
from pathlib import Path

from l2o.checkpoint import CheckpointError, find, load_rule
from l2o.interop import huggingface

FILES = ("rule.json", "rule.safetensors")
"""What a checkpoint consists of."""
_ADDRESS = re.compile(r"(?:hf:/{1,2})?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?")


def fetch(address: str) -> Path:
    """Return the directory of a checkpoint, from the cache or the Hub.

    Args:
        address: hf://owner/name[@revision].

    Raises:
        CheckpointError: if the address is none, or what it names cannot be had.
    """
    repository, revision = _parse(address)
    try:
        return huggingface.download(repository, FILES, revision)
    except huggingface.HubError as error:
        raise CheckpointError(str(error)) from error


def push(source: str | os.PathLike, address: str, card: str, private: bool = False) -> str:
    """Upload a checkpoint, after having loaded it; return the address of its page.

    Args:
        source: as for `l2o.load_rule`.
        address: [hf://]owner/name; the repository is created if there is none.
        card: the text of its README.md.
        private: create it as a private one.

    Raises:
        CheckpointError: if the source is no checkpoint, the address none, or the Hub does not take it.
    """
    repository, revision = _parse(address)
    if revision is not None:
        raise CheckpointError(f"{address}: a checkpoint is pushed to a repository, not to a revision; leave out @…")
    load_rule(source)
    directory = find(source)
    files = {name: (directory / name).read_bytes() for name in FILES} | {"README.md": card.encode()}
    try:
        return huggingface.upload(repository, files, private, message="Upload with l2o push")
    except huggingface.HubError as error:
        raise CheckpointError(str(error)) from error


def _parse(address: str) -> tuple[str, str | None]:
    if not (match := _ADDRESS.fullmatch(address)):
        raise CheckpointError(
            f"{address} is no address on the Hub; expected hf://owner/name or hf://owner/name@revision"
        )
    return match["repository"], match["revision"]
