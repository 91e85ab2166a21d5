"""Fixtures that several test files share."""

import os

import pytest


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in to W&B, whoever runs the tests, and nothing is written to his home."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name.lower()}"))
