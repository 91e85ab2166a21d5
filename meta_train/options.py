"""Options that several commands share."""

from typing import Annotated

import tyro

from meta_train.distributed import DeviceName
from meta_train.wandb_run import WandbMode

Threads = Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes all cores.")]
Device = Annotated[DeviceName, tyro.conf.arg(help="Where to compute; under torchrun, cuda gives every rank a GPU.")]
Wandb = Annotated[
    WandbMode, tyro.conf.arg(help="Weights & Biases: auto is online when logged in, else offline; off without wandb.")
]
