"""Every order of two settings, in processes of their own where they cannot be undone.

Prints what is not as it was after a region of full precision, and what in it was not full.
"""

import contextlib
import itertools
import os

import torch

from geoopt_projunn.linalg.precision import full_precision, full_precision_cudnn
from tests._precision_settings import WAYS, forget, products_are_full, snapshot, use

GENERAL = [("general", "ieee"), ("cuda", "ieee"), ("float32_matmul_precision", "highest")]


def passes_full(decorator):
    """Return whether all is full in a region that an exception leaves."""
    said = []

    @decorator
    def look():
        rnn = torch.backends.cudnn.rnn.fp32_precision
        said.append(products_are_full())
        said.append(decorator is full_precision or rnn in ("ieee", "none"))
        raise KeyError

    with contextlib.suppress(KeyError):
        look()
    return all(said)


def in_child(report):
    """Return what a function says in a child of this process."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, repr(report()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def told(before, after, *decorators):
    def report():
        for way in before:
            use(*way)
        inside = [passes_full(decorator) for decorator in decorators]
        for way in after:
            use(*way)
        return all(inside), snapshot()

    # cuDNN's default cannot be set again.
    if after or any(name.startswith("cudnn") for name, _ in before):
        return in_child(report)
    answer = repr(report())
    forget()
    return answer


def main():
    alone = [(), *((way,) for way in WAYS)]
    # What was set goes on to follow, or not to follow, what is set later.
    cases = [(before, (later,)) for before in alone for later in GENERAL]
    cases += [(before, ()) for before in (*alone, *itertools.permutations(WAYS, 2))]
    for before, after in cases:
        expected = told(before, after)
        said = told(before, after, full_precision, full_precision_cudnn)
        if said != expected:
            print(before, after, said, "instead of", expected, sep="\n  ")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
