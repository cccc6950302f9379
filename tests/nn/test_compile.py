"""A compiled model computes what it does without, and its train step is the Riemannian one."""

import copy
import shutil

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import (
    ModReLU,
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalRNN,
    OrthogonalRNNCell,
    RealReadout,
    UnitaryRNN,
    orthogonality_errors,
    orthogonalize_,
)
from tests._asserts import assert_within
from tests.nn._modules import LAYERS, MODULES, at, build, inputs, values

pytestmark = [
    pytest.mark.skipif(
        not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler"
    ),
    # torch's own, where it compiles what follows a graph break.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex"),
]


class Layered(torch.nn.Module):
    def __init__(self, layer, activation, readout):
        super().__init__()
        self.layer, self.activation, self.readout = layer, activation, readout

    def forward(self, x):
        states, last = self.layer(2 * x)
        return self.readout(self.activation(states)).sum() + last.abs().square().sum()


class Unrolled(torch.nn.Module):
    def __init__(self, nonlinearity):
        super().__init__()
        self.cell = OrthogonalRNNCell(3, 8, nonlinearity=nonlinearity)

    def forward(self, x):
        h = self.cell(x[0])
        for x_t in x[1:]:
            h = self.cell(x_t, h)
        return (h - 1).square().sum()


class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 8))
        orthogonalize_(self, "layers.1.weight")

    def forward(self, x):
        return (self.layers(x) - 1).square().sum()


MODELS = {
    "modules of others": Foreign,
    "layer": lambda: Layered(OrthogonalRNN(3, 8, 2), ModReLU(8), torch.nn.Linear(8, 2)),
    "relu layer": lambda: Layered(
        OrthogonalRNN(3, 8, nonlinearity="relu"), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    ),
    "unitary layer": lambda: Layered(UnitaryRNN(3, 8), torch.nn.Identity(), RealReadout(8, 2)),
    "cells": lambda: Unrolled("modrelu"),
    "relu cells": lambda: Unrolled("relu"),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(run, optimizer, x):
    optimizer.zero_grad()
    loss = run(x)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("whole", [False, True], ids=["model", "train step"])
@pytest.mark.parametrize("name", MODELS)
def test_three_steps_are_those_without_compilation(name, whole):
    eager = MODELS[name]()
    other = copy.deepcopy(eager)
    optimizers = [ProjUNNRiemannianAdam(m.parameters(), lr=0.05) for m in (eager, other)]
    before = [p.detach().clone() for p in other.parameters()]
    # One compiled to machine code of each kind; the others stop at the graph, which is faster.
    backend = "inductor" if name in ("layer", "cells", "modules of others") else "aot_eager"
    step = torch.compile(train, backend=backend) if whole else train
    run = other if whole else torch.compile(other, backend=backend)
    for _ in range(3):
        x = torch.randn(5, 2, 3)
        loss = step(run, optimizers[1], x)
        assert_within(loss, train(eager, optimizers[0], x), 1e-4)
    for p, q, start in zip(eager.parameters(), other.parameters(), before, strict=True):
        assert_within(q.detach(), p.detach(), 1e-4)
        assert not torch.equal(q, start)
    errors = orthogonality_errors(other)
    assert errors
    assert max(errors.values()) < 1e-5


def test_modules_of_others_are_compiled_whole_and_once():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    module = Foreign()
    run = torch.compile(module, backend=backend, fullgraph=True)
    optimizer = ProjUNNRiemannianAdam(module.parameters(), lr=0.05)
    for _ in range(3):
        train(run, optimizer, torch.randn(5, 2, 3))
    assert len(graphs) == 1
    x = torch.randn(5, 2, 3)
    module.load_state_dict(Foreign().state_dict(), assign=True)
    assert_within(run(x).detach(), module(x).detach(), 1e-5)


CELL = "OrthogonalRNNCell modrelu"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LAYERS])
def test_a_module_is_one_graph(name):
    """Of convolutions and cells; torch.compile leaves recurrent layers out, as torch's own."""
    module = build(name)
    is_built = name in ("OrthogonalConv1d (3, 2, 5)", CELL)
    run = torch.compile(module, fullgraph=True, backend="inductor" if is_built else "aot_eager")
    # Another batch size is compiled anew, for any size: the next test has all modules so.
    for batch in (2, 3) if is_built else (2,):
        x = inputs(name, batch).requires_grad_()
        results = []
        for function in (run, module):
            y = function(x)
            loss = (y - 1).abs().square().sum()
            results.append([y, *torch.autograd.grad(loss, [x, *module.parameters()])])
        for actual, expected in zip(*results, strict=True):
            if expected.numel():
                assert_within(actual, expected, 1e-9 * max(1.0, expected.abs().max().item()))


def gradients(run, module, x):
    return torch.autograd.grad((run(x) - 1).abs().square().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LAYERS])
def test_a_module_is_one_graph_for_batches_of_any_size(name):
    module = build(name)
    run = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Of no size that is the layer's as well, which torch would take for the same.
        for batch in (11, 13):
            x = inputs(name, batch).requires_grad_()
            results = (gradients(f, module, x) for f in (run, module))
            for actual, expected in zip(*results, strict=True):
                if expected.numel():
                    bound = 1e-9 * max(1.0, expected.abs().max().item())
                    assert_within(actual, expected, bound)


def test_convolutions_in_a_row_are_one_graph_for_batches_of_any_size():
    model = torch.nn.Sequential(
        OrthogonalConv2d(2, 4, 6), torch.nn.ReLU(), OrthogonalConv2d(4, 4, 6, 2)
    )
    run = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(batch, 2, 6, 6, requires_grad=True)
        for actual, expected in zip(*(gradients(f, model, x) for f in (run, model)), strict=True):
            assert_within(actual, expected, 1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(
    ("kind", "nonlinearity"),
    [(OrthogonalRNN, "modrelu"), (OrthogonalRNN, "tanh"), (OrthogonalGRU, "modrelu")],
)
def test_the_compiler_does_not_look_into_a_recurrent_layer(kind, nonlinearity):
    """It leaves out a function that calls torch's layers, but takes what that function calls.

    Here it would unroll the loop, and compile it anew for every length.
    """
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    layer = kind(3, 8, nonlinearity=nonlinearity)
    model = Layered(layer, torch.nn.Identity(), torch.nn.Identity())
    run = torch.compile(model, backend=backend)
    for length in (3, 4, 5):
        x = torch.randn(length, 2, 3)
        assert_within(run(x).detach(), model(x).detach(), 1e-4)
    assert not graphs


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LAYERS])
def test_gradients_of_each_sample_are_one_graph(name):
    module = build(name)
    samples = torch.stack([inputs(name) for _ in range(3)])

    def loss(parameters, x):
        return (at(module, parameters, x) - 1).abs().square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")(values(module), samples)
    for key, expected in each(values(module), samples).items():
        if expected.numel():
            assert_within(compiled[key], expected, 1e-9 * max(1.0, expected.abs().max().item()))
