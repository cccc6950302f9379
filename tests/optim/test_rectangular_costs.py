"""What steps of rectangular parameters cost."""

import geoopt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankStiefel, backends
from tests._modes import Recorder

from ._helpers import gradients
from ._rectangles import OPTIONS, parameter, rules, run

pytestmark = pytest.mark.usefixtures("each_way")


@rules
@pytest.mark.parametrize(("n", "p"), [(4096, 256), (256, 4096), (65536, 16)])
def test_a_step_costs_knp_flops_whatever_the_shape(n, p, rule):
    manifold = LowRankStiefel(4)
    data, grad = (torch.empty(n, p, device="meta") for _ in range(2))
    weight = geoopt.ManifoldParameter(data, manifold=manifold)
    kind, options = OPTIONS[rule]
    optimizer = kind([weight], **options)
    for _ in range(2):
        weight.grad = grad
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
    products = counter.get_total_flops()
    # Beside n p k there is n k², of bases.
    assert products < 40 * 4 * n * p + 200 * 16 * (n + p)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("rule", sorted(set(OPTIONS) - {"feedback"}))
@pytest.mark.parametrize(
    ("shape", "blocks"), [((9, 4), 1), ((3, 4, 9), 1), ((12, 6), 2), ((8, 9), 2)]
)
def test_the_kernels_take_such_steps_whole(shape, blocks, rule):
    p = parameter(*shape, blocks=blocks)
    optimizer = run(rule, [p], [gradients(p, 1)])
    (p.grad,) = gradients(p, 1)
    with backends.use("cpu"), Recorder() as recorder:
        optimizer.step()
    assert "step_" in recorder.operations
    assert not {"bmm", "baddbmm", "turn_"} & recorder.operations
