"""Train with Hugging Face Accelerate: python accelerate_program.py FOLDER. Prints first and last loss, two checksums.

The first checksum is of eight steps, the second of four steps, a saved state, and four more.
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset


def start():
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    inputs = torch.randn(64, 4)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=16)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    return accelerator, *accelerator.prepare(model, optimizer, loader, schedule)


def epochs(count, accelerator, model, optimizer, loader, schedule):
    losses = []
    for inputs, targets in list(loader) * count:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def checksum(model):
    return sum(param.detach().double().sum().item() for param in model.parameters())


if __name__ == "__main__":
    accelerator, *prepared = start()
    losses = epochs(2, accelerator, *prepared)
    accelerator.save_state(sys.argv[1])
    losses += epochs(2, accelerator, *prepared)
    expected = checksum(prepared[0])
    accelerator, *prepared = start()
    accelerator.load_state(sys.argv[1])
    epochs(2, accelerator, *prepared)
    print(losses[0], losses[-1], expected, checksum(prepared[0]))
