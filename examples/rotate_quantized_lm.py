"""Rotate the residual stream of a small language model so that quantization harms it less.

A transformer learns characters from Python's own help texts (pydoc_data.topics). Large models have
channels far larger than the rest, which spoil quantization; here the embedding starts with eight.
Layers that read the stream compute Q(WRᵀ) Q(Rx), in few bits, instead of Wx. One R serves all of
them: the identity, a Hadamard matrix, or learned from there, by gradients straight through
the rounding, without momentum. The table gives the perplexity of a text that was kept apart.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _needed
import geoopt
import scipy.linalg
import torch
from _options import not_negative, output_folder, positive
from _pictures import plt, save_picture
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

CONTEXT, HEADS, LARGE = 64, 4, 8
Learner = tuple[Callable[[], Tensor], torch.optim.Optimizer]
Read = Callable[[torch.nn.Linear, Tensor], Tensor]  # how a layer reads the residual stream


class LanguageModel(torch.nn.Module):
    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(characters, width)
        self.embedding.weight.data[:, :LARGE] *= 12
        self.places = torch.nn.Embedding(CONTEXT, width)
        linear, modules = partial(torch.nn.Linear, bias=False), torch.nn.ModuleList
        sizes = ((1, 3), (1, 1), (1, 4), (4, 1))  # of attention, of the hidden layer
        layers = [[linear(width * a, width * b) for a, b in sizes] for _ in range(2)]
        self.blocks = modules(modules(block) for block in layers)
        self.head = linear(width, characters)

    def loss(self, text: Tensor, read: Read = torch.nn.Linear.forward) -> Tensor:
        """Return the cross-entropy of each next character, text (m, CONTEXT + 1)."""
        x = self.embedding(text[:, :-1]) + self.places.weight
        norm = partial(functional.rms_norm, normalized_shape=x.shape[-1:])
        for qkv, out, up, down in self.blocks:
            parts = read(qkv, norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + out(seen.transpose(1, 2).flatten(2))
            x = x + down(functional.gelu(read(up, norm(x))))
        return functional.cross_entropy(read(self.head, norm(x)).mT, text[:, 1:])


def quantize(x: Tensor, bits: int) -> Tensor:
    """Round rows to multiples of their largest entry over 2^(bits − 1) − 1, straight through."""
    step = x.detach().abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return x + ((x / step).round() * step - x).detach()


def rotated(r: Tensor, bits: int) -> Read:
    q = partial(quantize, bits=bits)
    return lambda layer, x: functional.linear(q(x @ r.mT), q(layer.weight @ r.mT))


def on(manifold: geoopt.Manifold, optimizer: Callable, lr: float, start: Tensor) -> Learner:
    weight = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    return lambda: weight, optimizer([weight], lr=lr)


def cayley(start: Tensor, lr: float) -> Learner:
    module = torch.nn.Linear(*start.shape, bias=False)
    torch.nn.utils.parametrizations.orthogonal(module, orthogonal_map="cayley")
    module.weight = start
    return lambda: module.weight, torch.optim.Adam(module.parameters(), lr)


SGD = partial(ProjUNNRiemannianSGD, normalize="angle")
METHODS = {
    "ours, k = 4": partial(on, LowRankUnitary(4), SGD, 0.02),
    "ours, k = 16": partial(on, LowRankUnitary(16), SGD, 0.01),
    "geoopt, Adam": partial(on, geoopt.CanonicalStiefel(), geoopt.optim.RiemannianAdam, 0.02),
    "torch, cayley": partial(cayley, lr=0.002),
}


def descend(name: str, steps: int, optimizer: torch.optim.Optimizer, loss: Callable) -> float:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    start = time.process_time()
    for _ in tqdm(range(steps), desc=name, mininterval=1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> list[tuple]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--bits", nargs="+", type=int, choices=range(2, 9), default=[4, 3])
    add("--steps", nargs=2, type=positive, default=[400, 120], help="of model and rotation")
    add("--seed", type=not_negative, default=0)
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    width = 32 if options.smoke else 128
    if options.smoke:
        options.steps, options.bits = [10, 3], [3]
    torch.manual_seed(options.seed)
    text = torch.tensor([ord(character) for character in _needed.help_texts()])
    characters, ids = text.unique(return_inverse=True)
    train, test = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :].unfold(0, CONTEXT + 1, 128)
    model = LanguageModel(len(characters), width)

    def batch(size: int) -> Tensor:
        return train[torch.randint(len(train) - CONTEXT, (size, 1)) + torch.arange(CONTEXT + 1)]

    def perplexity(*read: Read) -> float:
        return float(model.loss(test, *read).exp())

    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    descend("the model", options.steps[0], adam, lambda: model.loss(batch(32)))
    model.requires_grad_(False)
    hadamard = torch.tensor(scipy.linalg.hadamard(width)).float() / width**0.5
    rows = [(32, "exact", perplexity(), 0.0)]
    for bits in options.bits:
        for name, r in {"no rotation": torch.eye(width), "Hadamard": hadamard}.items():
            rows.append((bits, name, perplexity(rotated(r, bits)), 0.0))
        for name, make in METHODS.items():
            torch.manual_seed(options.seed)
            r, step = make(hadamard)
            loss = partial(lambda r, bits: model.loss(batch(16), rotated(r(), bits)), r, bits)
            seconds = descend(f"{bits} bits: {name}", options.steps[1], step, loss)
            rows.append((bits, name, perplexity(rotated(r().detach(), bits)), seconds))
    print("\nPerplexity of unseen text\nbits  rotation                    perplexity  seconds")
    for row in rows:
        print("{:>4}  {:<26}{:>12.3f}{:>9.1f}".format(*row))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.barh([f"{name}, {bits} bits" for bits, name, *_ in rows], [row[2] for row in rows])
    axes.set(xlabel="perplexity", xlim=(0.95 * rows[0][2], None), ylim=(len(rows) - 0.5, -0.5))
    save_picture(figure, options.output / "rotate_quantized_lm.png")
    return rows


if __name__ == "__main__":
    main()
