"""The command line: `l2o train | benchmark | list`."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from l2o.checkpoint import available, read_card, find
from l2o.rules import RULES
from meta_train.config import PRESETS, TrainConfig
from meta_train.run_directory import RunDirectory
from meta_train.tracking import Progress, WandbMode
from meta_train.trainer import Trainer


def main(arguments: list[str] | None = None) -> None:
    for name, preset in PRESETS.items():
        config = tyro.cli(TrainConfig, default=preset, args=arguments, config=(tyro.conf.AvoidSubcommands,))
        print(config)
        break

if __name__ == "__main__":
    main()
