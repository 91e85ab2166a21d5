"""Train with Lightning: python lightning_program.py FOLDER. Prints the first and last loss and two checksums.

The first checksum is of four epochs, the second of two epochs, a checkpoint, and two more.
"""

import logging
import sys
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")  # of the framework about itself
logging.disable(logging.INFO)
import lightning  # noqa: E402


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self.losses = []

    def training_step(self, batch, index):
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(self.net(inputs), targets)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder, epochs, resume=None):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 4, generator=generator)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model = Classifier()
    trainer.fit(model, loader, ckpt_path=resume)
    trainer.save_checkpoint(f"{folder}/{epochs}.ckpt")
    return model


def checksum(model):
    return sum(param.detach().double().sum().item() for param in model.parameters())


if __name__ == "__main__":
    folder = sys.argv[1]
    model = fit(folder, 4)
    fit(folder, 2)
    print(model.losses[0], model.losses[-1], checksum(model), checksum(fit(folder, 4, f"{folder}/2.ckpt")))
