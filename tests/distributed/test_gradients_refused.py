"""Which parameters and optimizers cannot average sketches of gradients."""

import copy
import io

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import (
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
)
from geoopt_projunn.backends.distributed import averages_gradients
from geoopt_projunn.distributed import sketch_gradients_


def copies():
    """Return which of a parameter, its copy and its pickle have their gradients averaged."""
    p = geoopt.ManifoldParameter(LowRankUnitary().random(8, 8))
    sketch_gradients_(p)
    file = io.BytesIO()
    torch.save(torch.nn.ParameterList([p]), file)
    file.seek(0)
    (loaded,) = torch.load(file, weights_only=False)
    return [averages_gradients(q) is not None for q in (p, copy.deepcopy(p), loaded)]


def test_copies_and_pickles_are_not_marked(world):
    assert world.run(copies) == [[True, False, False]] * 4


def test_parameters_are_passed_without_their_names():
    with pytest.raises(TypeError, match=r"`params\[0\]` must be a parameter, got tuple; .* names"):
        sketch_gradients_(torch.nn.Linear(4, 4).named_parameters())


def refuse():
    good = geoopt.ManifoldParameter(LowRankUnitary(k=2).random(8, 8))
    with pytest.raises(TypeError, match=r"`params\[1\]` must be on LowRankUnitary or LowRankSt"):
        sketch_gradients_([good, torch.nn.Parameter(torch.eye(8))])
    for manifold in (LowRankUnitary(k=None), LowRankUnitary(sketch="column")):
        with pytest.raises(ValueError, match=r"`params\[0\]` must have a finite k and the sketch"):
            sketch_gradients_(geoopt.ManifoldParameter(manifold.random(8, 8)))
    others = distributed.new_group([0, 1])
    if distributed.get_rank() > 1:
        with pytest.raises(ValueError, match=r"`group` must be one that .* without process [23]"):
            sketch_gradients_(good, others)
        assert averages_gradients(good) is None
    sketch_gradients_(good)
    plain = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianAdam([("plain", plain), ("w", good)])
    good.grad, plain.grad = torch.ones(8, 8), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"Steps of parameter `w` .* needs ProjUNNRiemannianSGD"):
        optimizer.step()
    optimizer = ProjUNNRiemannianSGD([good], momentum=0.9, momentum_space="tangent")
    with pytest.raises(ValueError, match=r"`momentum_space` of .* must be \"ambient\""):
        optimizer.step()
    # Changed since it was marked.
    good.manifold = LowRankUnitary(sketch="column")
    optimizer = ProjUNNRiemannianSGD([good])
    with pytest.raises(RuntimeError, match=r"the sketch 'tangent' or 'lsi', got k=4, sketch='col"):
        optimizer.step()
    return bool((plain == 1).all()) and not optimizer.state


def test_what_is_not_linear_in_the_gradient_is_refused(world):
    assert all(world.run(refuse))


def test_without_a_process_group_there_is_an_error():
    p = geoopt.ManifoldParameter(LowRankUnitary().random(8, 8))
    with pytest.raises(RuntimeError, match="needs a process group"):
        sketch_gradients_(p)
