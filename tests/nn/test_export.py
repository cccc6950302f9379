"""Programs that torch makes of a module compute what it computes, or refuse to be made."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from geoopt_projunn import nn
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._modules import CONVOLUTIONS, LAYERS, MODULES, build, inputs, output

every_module = pytest.mark.parametrize("name", MODULES)
traced = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


def gradients(module, x, run):
    y = output(run, x)
    return torch.autograd.grad((y - 1).abs().square().sum(), list(module.parameters()))


@pytest.mark.parametrize("strict", [False, True])
@every_module
def test_an_exported_module_is_equal_for_any_batch(name, strict):
    """With gradients on, as torch.export is called."""
    module = build(name)
    axis = 1 if name in LAYERS else 0
    (argument,) = (key for key in ("x", "input") if key in module.forward.__code__.co_varnames[:2])
    shapes = {argument: {axis: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(module, (inputs(name),), strict=strict, dynamic_shapes=shapes)
    for batch in (1, 2, 7):
        x = inputs(name, batch)
        assert_within(output(program.module(), x), output(module, x), 1e-12)


@every_module
def test_an_exported_module_has_the_gradients(name):
    module, x = build(name), inputs(name)
    program = torch.export.export(module, (x,)).module()
    expected = dict(
        zip((n for n, _ in module.named_parameters()), gradients(module, x, module), strict=True)
    )
    actual = gradients(program, x, program)
    for (key, _), value in zip(program.named_parameters(), actual, strict=True):
        assert_within(value - expected[key], 0.0, 1e-10) if value.numel() else None


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_all_forms_of_a_layer_are_exported(kind):
    layer = kind(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5).eval()
    dtype = layer.weight_hh_l0.dtype
    x, h0 = torch.randn(2, 5, 3, dtype=dtype), torch.randn(4, 2, 4, dtype=dtype)
    for arguments in ((x,), (x, h0), (x[0], h0[:, 0])):
        program = torch.export.export(layer, arguments).module()
        for actual, expected in zip(program(*arguments), layer(*arguments), strict=True):
            assert_within(actual, expected, 1e-5)


class OfLengths(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths):
        return self.layer(pack_padded_sequence(x, lengths))[0].data


@traced
@pytest.mark.parametrize("make", [torch.export.export, torch.jit.trace])
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_lengths_of_a_packed_batch_do_not_become_constants(nonlinearity, make):
    module = OfLengths(OrthogonalRNN(3, 4, nonlinearity=nonlinearity))
    with pytest.raises(RuntimeError, match=r"`input` must be a padded tensor in torch\.export"):
        make(module, (torch.randn(5, 2, 3), torch.tensor([5, 3])))


@traced
@every_module
def test_a_traced_module_is_equal_for_any_batch(name):
    module = build(name)
    program = torch.jit.trace(module, (inputs(name),))
    for batch in (1, 2, 7):
        x = inputs(name, batch)
        assert_within(output(program, x), output(module, x), 1e-12)


@traced
@pytest.mark.parametrize("name", LAYERS)
def test_a_traced_layer_takes_sequences_of_one_length(name):
    program = torch.jit.trace(build(name, bidirectional=True), (inputs(name),))
    dtype = inputs(name).dtype
    for shape in ((2, 3, 3), (1, 6, 3), (6, 1, 3), (4, 2, 3)):
        with pytest.raises(RuntimeError, match="split_sizes to sum exactly"):
            program(torch.randn(shape, dtype=dtype))


# Options, the shapes of an input and of a state, and of the same for another batch.
STATES = {
    "layer": ({"num_layers": 2}, (3, 2, 3), (2, 2, 4), (3, 5, 3), (2, 5, 4)),
    "bidirectional": (
        {"bidirectional": True, "batch_first": True},
        *((2, 3, 3), (2, 2, 4), (5, 3, 3), (2, 5, 4)),
    ),
    "layer, no batch": ({}, (3, 3), (1, 4), (3, 3), (1, 4)),
    "cell": ({}, (2, 3), (2, 4), (5, 3), (5, 4)),
    "cell, no batch": ({}, (3,), (4,), (3,), (4,)),
}


@traced
@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("field", ["OrthogonalRNN", "UnitaryRNN", "OrthogonalGRU"])
def test_a_traced_program_takes_no_state_of_another_shape(field, form):
    """Nor does the module."""
    options, shape, own, *others = STATES[form]
    module = getattr(nn, f"{field}Cell" if "cell" in form else field)(3, 4, **options)
    dtype = module.weight_hh.dtype if "cell" in form else module.weight_hh_l0.dtype
    x = torch.randn(shape, dtype=dtype)
    program = torch.jit.trace(module, (x, torch.zeros(own, dtype=dtype)))
    for sizes in (others, (shape, own), others):  # torch optimizes the program after two calls
        right = [torch.randn(size, dtype=dtype) for size in sizes]
        for actual, expected in zip(program(*right), module(*right), strict=True):
            assert_within(actual, expected, 1e-5)
    changed = [
        (*own[:axis], size, *own[axis + 1 :])
        for axis, right in enumerate(own)
        for size in {1, right + 1, 2 * right} - {right}
    ]
    more = [(1, *own), (*own, 1), (*own, 4), own[1:]]
    for wrong in (*changed, *more):
        h = torch.randn(wrong, dtype=dtype)
        with pytest.raises((RuntimeError, ValueError), match=r"hx|hidden|Expected"):
            module(x, h)
        with pytest.raises(RuntimeError, match=r"split_sizes to sum exactly|number of dimensions"):
            program(x, h)


@traced
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_traced_convolution_takes_signals_of_one_size(name):
    program = torch.jit.trace(build(name), (inputs(name),))
    x = inputs(name)
    for axis in range(2, x.dim()):
        for other in (torch.cat([x, x], axis), x.narrow(axis, 0, 1)):
            with pytest.raises(RuntimeError, match="split_sizes to sum exactly"):
                program(other)
