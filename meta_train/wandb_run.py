"""Weights & Biases, when installed: whether to log, where, and what every run of ours leaves there."""

import hashlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

WandbMode = Literal["auto", "online", "offline", "off"]

PROJECT = "l2o"
"""The project that all runs and reports belong to."""


def choose_wandb(mode: WandbMode) -> Literal["online", "offline"] | None:
    """Return what a mode means here and now; None is off, or wandb is not installed.

    Raises:
        ValueError: if online is asked for, but wandb is not installed or nobody is logged in.
    """
    if mode == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        if mode == "online":
            raise ValueError("--wandb online needs wandb: pip install 'l2o[train]'") from None
        return None
    logged_in = mode != "offline" and wandb.login(prompt=False, verify=False)
    if mode == "online" and not logged_in:
        raise ValueError("--wandb online needs a login: run `wandb login` once, or take --wandb offline")
    return "online" if logged_in else "offline"


def open_wandb(directory: Path, mode: WandbMode, *, name: str, identity: bytes, kind: str, config: dict[str, Any]):
    """Return a W&B run, or None when off or not installed.

    Args:
        directory: where the run's files go, in a folder wandb/.
        name: shown on the page; together with `identity` it is also the run's id, so that it can be continued.
        identity: what distinguishes runs that had the same name one after the other.
        kind: training or benchmark.

    Raises:
        ValueError: see `choose_wandb`; or if online is asked for, but no server answers.
    """
    chosen = choose_wandb(mode)
    if chosen is None:
        return None
    import wandb

    facts = {
        "project": PROJECT, "name": name, "job_type": kind, "dir": directory, "config": config, "resume": "allow",
        "id": re.sub(r"[^\w.-]", "-", name)[:64] + "-" + hashlib.sha256(identity).hexdigest()[:8],
        "settings": wandb.Settings(silent=True, console="off", disable_git=True),
    }  # fmt: skip
    if chosen == "online":
        try:
            return wandb.init(**facts, mode="online")
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            if mode == "online":
                raise ValueError(f"--wandb online: {reason}. Check the network, or take --wandb offline") from error
            print(f"Weights & Biases goes on offline: {reason}", file=sys.stderr)
            wandb.teardown()  # frees the id, which the attempt holds
    try:
        return wandb.init(**facts, mode="offline")
    except Exception as error:  # its service may fail in ways that wandb.Error does not cover, such as a busy machine
        if mode != "auto":
            raise
        reason = (str(error) or repr(error)).splitlines()[0]
        print(f"Weights & Biases is off: {reason}", file=sys.stderr)
        return None


def log_model(run, name: str, checkpoint: Path, facts: dict[str, Any]) -> None:
    """Log a checkpoint's files as an artifact; a checkpoint that cannot be read is said, and left out."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name)[:128], type="model", metadata=facts)
    try:
        for path in sorted(checkpoint.iterdir()):
            artifact.add_file(str(path))
    except (OSError, ValueError) as error:
        print(f"Weights & Biases gets no checkpoint: {error}", file=sys.stderr)
        return
    run.log_artifact(artifact)


def finish_wandb(run) -> None:
    """End a run, and tell how one that stayed here is uploaded later."""
    offline = Path(run.settings.sync_dir) if run.offline else None
    run.finish()
    if offline is not None:
        print(f"Weights & Biases logged offline; to upload: wandb sync {shlex.quote(str(offline))}", file=sys.stderr)
