"""Train a small convolutional network, with what a usual script has: python plain.py FOLDER EPOCHS.

Mixed precision, gradient accumulation and clipping, warm-up and cosine decay, an exponential moving average,
checkpoints after each epoch, and resuming from the last. Prints the number of epochs and a checksum of the weights.
"""

import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS_PLANNED, BATCH, ACCUMULATE, CLIP = 4, 16, 2, 1.0


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(128, 1, 8, 8, generator=generator)
    labels = (images[:, 0, :4].mean((1, 2)) > images[:, 0, 4:].mean((1, 2))).long()
    return TensorDataset(images[:96], labels[:96]), TensorDataset(images[96:], labels[96:])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.head = nn.Linear(4 * 16, 2)

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images)) + self.embed)
        return self.head(nn.functional.max_pool2d(features, 2).flatten(1))


def split_by_decay(model):
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]


class Trainer:
    def __init__(self, folder):
        torch.manual_seed(0)
        self.path = os.path.join(folder, "checkpoint.pt")
        self.train_set, self.test_set = data()
        self.model = Net()
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        self.optimizer = torch.optim.AdamW(split_by_decay(self.model), lr=0.01)
        steps = EPOCHS_PLANNED * len(self.train_set) // (BATCH * ACCUMULATE)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=2),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps - 2),
            ],
            milestones=[2],
        )
        self.scaler = torch.amp.GradScaler("cpu")
        self.epoch = 0

    def parts(self):
        return {name: getattr(self, name) for name in ("model", "ema", "optimizer", "scheduler", "scaler")}

    def save(self):
        content = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save(content | {"epoch": self.epoch}, self.path)

    def resume(self):
        if os.path.exists(self.path):
            saved = torch.load(self.path, weights_only=True)
            for name, part in self.parts().items():
                part.load_state_dict(saved[name])
            self.epoch = saved["epoch"]

    def train_epoch(self):
        self.model.train()
        order = torch.Generator().manual_seed(self.epoch)
        loader = DataLoader(self.train_set, BATCH, shuffle=True, generator=order)
        self.optimizer.zero_grad(set_to_none=True)
        for index, (images, labels) in enumerate(loader):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(self.model(images), labels) / ACCUMULATE
            self.scaler.scale(loss).backward()
            if (index + 1) % ACCUMULATE:
                continue
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.update_parameters(self.model)
        self.epoch += 1

    @torch.no_grad()
    def test_loss(self):
        self.model.eval()
        images, labels = self.test_set[:]
        return nn.functional.cross_entropy(self.model(images), labels).item()


def main(folder, epochs):
    trainer = Trainer(folder)
    before = trainer.test_loss()
    trainer.resume()
    while trainer.epoch < epochs:
        trainer.train_epoch()
        trainer.save()
    weights = torch.cat([p.detach().flatten() for p in [*trainer.model.parameters(), *trainer.ema.parameters()]])
    print(trainer.epoch, before, trainer.test_loss(), weights.double().sum().item())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
