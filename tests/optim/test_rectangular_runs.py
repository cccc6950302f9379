"""Runs of rectangular parameters and of blocks are resumed and stabilized."""

import copy

import pytest
import torch

from ._helpers import OPTIMIZERS, assert_same_bits, feed, gradients, orthogonality_error
from ._rectangles import OPTIONS, on, parameter, rules, run

pytestmark = pytest.mark.usefixtures("each_way")


@rules
@pytest.mark.parametrize(("shape", "blocks"), [((4, 9), 1), ((12, 4), 3)])
def test_a_run_resumes_bit_for_bit(shape, blocks, rule):
    p = parameter(*shape, k=1, blocks=blocks)
    grads = gradients(p, 6)
    optimizer = run(rule, [p], [grads[:3]])
    saved, values = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    feed(optimizer, p, grads[3:])
    q = on(values, p.manifold)
    kind, options = OPTIONS[rule]
    other = kind([q], **options)
    other.load_state_dict(saved)
    feed(other, q, grads[3:])
    assert_same_bits(q, p)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_stabilizing_projects_blocks(kind):
    p = parameter(12, 4, k=1, blocks=3, sweep=0)
    optimizer = kind([p], lr=0.1, stabilize=2)
    feed(optimizer, p, gradients(p, 1))
    with torch.no_grad():
        p.add_(1e-4)
    feed(optimizer, p, gradients(p, 1))
    for block in p.detach().chunk(3):
        assert orthogonality_error(block) < 1e-14
