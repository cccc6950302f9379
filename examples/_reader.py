"""A small transformer that reads digits, eight rows of pixels to an image."""

import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

MATRICES = ["qkv", "out", "up", "down"]
"""The linear layers of a block."""


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, a, b in zip(MATRICES, (64, 64, 64, 128), (192, 64, 128, 64), strict=True):
            setattr(self, name, torch.nn.Linear(a, b))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norms[1](x)).relu())


class Reader(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Linear(8, 64)
        self.places = torch.nn.Parameter(torch.randn(8, 64))
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.head = torch.nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(images) + self.places).mean(1))

    def matrices(self) -> list[torch.nn.Linear]:
        return [getattr(block, name) for block in self.blocks for name in MATRICES]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw 500 of scikit-learn's digits for a test; return images and labels, rest and test."""
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float().unflatten(1, (8, 8)) / 16
    test, rest = torch.randperm(len(x)).tensor_split([500])
    return x[rest], y[rest], x[test], y[test]


def train(
    name: str, model: Reader, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> float:
    """Train at a rate that falls to zero, and return the seconds of processor time."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    start = time.process_time()
    for _ in tqdm(range(steps), desc=name, mininterval=1):
        optimizer.zero_grad()
        batch = torch.randint(len(x), (64,))
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start
