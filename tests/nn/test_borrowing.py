"""What takes the place of a parameter for one call is as before afterwards."""

import gc
import weakref

import geoopt
import pytest
import torch
from torch.func import functional_call

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._kept import (
    MANIFOLD,
    MODULES,
    OTHERS,
    OWN,
    assert_kept,
    every_module,
    parameters,
    untouched,
)


def fast_weights(module, dtype=None):
    return {
        n: torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype))
        for n, p in parameters(module).items()
    }


def assert_plain(borrowed):
    for p in borrowed.values():
        assert type(p) is torch.nn.Parameter
        assert not hasattr(p, "manifold")


class Inspect(torch.nn.Module):
    """Show a module to a function, in place of running it."""

    def __init__(self, module):
        super().__init__()
        self.part = module

    def forward(self, look):
        return look(self.part)


def call(module, values, look=lambda part: None):
    values = {f"part.{n}": p for n, p in values.items()}
    return functional_call(Inspect(module), values, (look,), tie_weights=False)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_parameters_of_a_torch_layer_are_plain_afterwards(nonlinearity):
    theirs = torch.nn.RNN(3, 8, nonlinearity=nonlinearity)
    ours = OrthogonalRNN(3, 8, nonlinearity=nonlinearity)
    x = torch.randn(5, 2, 3)
    borrowed = dict(theirs.named_parameters())
    outputs = functional_call(ours, borrowed, (x,))
    for output, expected in zip(outputs, theirs(x), strict=True):
        assert_within(output.detach(), expected.detach(), 1e-6)
    assert_plain(borrowed)
    assert_kept(ours, ["weight_hh_l0"], LowRankUnitary())


@every_module
def test_fast_weights_are_used_and_stay_plain(name):
    make, names = MODULES[name]
    module = make()
    before, fast = untouched(module), fast_weights(module)

    def look(part):
        assert all(part.get_parameter(n) is p for n, p in fast.items())
        assert len(list(part.parameters())) > 0

    call(module, fast, look)
    assert_plain(fast)
    assert all(p is before[n] for n, p in untouched(module).items())
    assert_kept(module, names)


@every_module
def test_a_loop_over_parameters_that_goes_on_after_the_call(name):
    make, names = MODULES[name]
    module = make()
    fast = fast_weights(module)
    loops = []
    # Each name on a manifold in turn is where the loop stands when the call ends.
    for n in names:
        path, _, leaf = n.rpartition(".")
        part = module.get_submodule(path)

        def begin(_, part=part, leaf=leaf):
            loop = part.named_parameters(recurse=False, remove_duplicate=False)
            loops.append(loop)
            return next(name for name, _ in loop if name == leaf)

        call(module, fast, begin)
        assert_plain(fast)
    for loop in loops:
        list(loop)
    assert_plain(fast)
    assert_kept(module, names)


@every_module
def test_calls_inside_calls(name):
    make, names = MODULES[name]
    module = make()
    before, outer = untouched(module), fast_weights(module)
    inner, tensors = fast_weights(module), {n: p.detach() for n, p in before.items()}
    for inside in (inner, tensors, outer):
        call(module, outer, lambda part, inside=inside: call(part, inside))
        assert_plain(outer)
        assert_plain(inner)
        assert all(p is before[n] for n, p in untouched(module).items())
    assert_kept(module, names)


@every_module
def test_a_call_that_fails(name):
    make, names = MODULES[name]
    module = make()
    fast = fast_weights(module)

    def fail(part):
        raise OverflowError

    with pytest.raises(OverflowError):
        call(module, fast, fail)
    assert_plain(fast)
    assert_kept(module, names)


STRANGE = {
    "half precision": lambda p: p.detach().abs().to(torch.bfloat16),
    "another field": lambda p: p.detach().real.clone() if p.is_complex() else p.detach() + 0j,
    "another shape": lambda p: p.detach()[..., :5, :3],
}


@every_module
@pytest.mark.parametrize("case", STRANGE)
def test_what_plain_tensors_may_do_for_a_call_parameters_may_do_too(name, case):
    make, names = MODULES[name]
    module = make()
    before = untouched(module)
    strange = {n: torch.nn.Parameter(STRANGE[case](before[n])) for n in names}
    tensors = {n: p.detach() for n, p in strange.items()}
    seen = []
    for values in (strange, tensors):
        call(module, values, lambda part: seen.append([p.dtype for p in part.parameters()]))
    assert seen[0] == seen[1]
    assert_plain(strange)
    assert all(p is before[n] for n, p in untouched(module).items())
    assert_kept(module, names)


def test_a_layer_runs_in_half_precision_for_a_call():
    layer, x = OrthogonalRNN(3, 8, nonlinearity="tanh"), torch.randn(5, 2, 3).bfloat16()
    fast = fast_weights(layer, torch.bfloat16)
    states, _ = functional_call(layer, fast, (x,))
    expected, _ = functional_call(layer, {n: p.detach() for n, p in fast.items()}, (x,))
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, expected)
    assert_plain(fast)


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_gradients_reach_fast_weights(kind):
    layer, x = kind(3, 8), torch.randn(5, 2, 3)
    fast = fast_weights(layer)
    functional_call(layer, fast, (x,))[0].abs().sum().backward()
    layer(x)[0].abs().sum().backward()
    for n, p in layer.named_parameters():
        assert_within(fast[n].grad, p.grad, 1e-5)


def test_parameters_that_are_on_a_manifold_stay_there():
    layer, other = OrthogonalRNN(3, 8, k=2), OrthogonalRNN(3, 8, k=3)
    functional_call(layer, dict(other.named_parameters()), (torch.randn(5, 2, 3),))
    assert_kept(other, ["weight_hh_l0"], LowRankUnitary(3))
    assert_kept(layer, ["weight_hh_l0"], LowRankUnitary(2))


@pytest.mark.parametrize("name", [*OWN, *OTHERS])
def test_what_is_set_for_good_stays_on_the_manifold(name):
    make, names = MODULES[name]
    module = make()
    old = module.get_parameter(names[0])
    owner = module.get_submodule(names[0].rpartition(".")[0])
    leaf = names[0].split(".")[-1]
    new = torch.nn.Parameter(old.detach().clone())
    setattr(owner, leaf, new)
    setattr(owner, leaf, old)
    assert type(new) is geoopt.ManifoldParameter
    assert new.manifold == MANIFOLD


def test_a_borrowed_parameter_is_not_kept_alive():
    layer = OrthogonalRNN(3, 8)
    gc.collect()
    gc.disable()
    try:
        layer.to("meta")
        references = [weakref.ref(p) for p in fast_weights(layer).values()]
        call(layer, {})
        assert not any(reference() for reference in references)
        old = weakref.ref(layer.weight_hh_l0)
        layer.to_empty(device="cpu")
        assert old() is None
    finally:
        gc.enable()


def test_what_a_conversion_has_made_can_be_swapped():
    module = MODULES["linear"][0]()
    kept = module.weight
    module.to("meta").to_empty(device="cpu")
    torch.utils.swap_tensors(module.weight, torch.nn.Parameter(torch.eye(8)))
    assert_kept(module.double(), ["weight"])
    assert kept is not module.weight
