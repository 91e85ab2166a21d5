"""Fixtures that several test files share."""

import os

import pytest

from meta_train import cli


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in to W&B, whoever runs the tests, and nothing is written to his home."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name.lower()}"))


@pytest.fixture
def l2o(capsys, monkeypatch, tmp_path):
    """Run a command in an empty directory; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code or 0
        return status, *capsys.readouterr()

    return run
