"""Every parameter on LowRankUnitary is kept, in whatever module it is registered."""

import copy
import pickle
import warnings

import geoopt
import pytest
import torch
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrize

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, orthogonalize_
from geoopt_projunn.nn.record import Record
from tests._asserts import assert_within
from tests.nn._kept import untouched

MANIFOLD = LowRankUnitary(2, retraction="polar", sweep=2)


def on_manifold():
    return geoopt.ManifoldParameter(MANIFOLD.random(8, 8), manifold=MANIFOLD)


class Users(torch.nn.Module):
    """A module as the README has it."""

    def __init__(self):
        super().__init__()
        self.turn = on_manifold()
        self.direction = geoopt.ManifoldParameter(
            torch.full((8,), 8**-0.5), manifold=geoopt.Sphere()
        )
        self.head = torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.head((x @ self.turn) * self.direction)


def linears(tie):
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    if tie == "before":
        module[2].weight = module[0].weight
    # Of the first alone: the second is not inside what is treated.
    orthogonalize_(module[0], "weight", 2, retraction="polar").manifold = MANIFOLD
    if tie == "after":
        module[2].weight = module[0].weight
    return module


def decoder():
    module = torch.nn.ModuleDict({"rnn": OrthogonalRNN(3, 8), "decoder": torch.nn.Linear(8, 8)})
    module["rnn"].weight_hh_l0.manifold = MANIFOLD
    module["decoder"].weight = module["rnn"].weight_hh_l0
    return module


def added():
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2))])
    module.append(on_manifold())
    module.extend([on_manifold()])
    return module


MODULES = {
    "declared": (Users, ["turn"]),
    "inside another": (lambda: torch.nn.Sequential(Users(), Users()), ["0.turn", "1.turn"]),
    "tied before": (lambda: linears("before"), ["0.weight", "2.weight"]),
    "tied after": (lambda: linears("after"), ["0.weight", "2.weight"]),
    "tied to a layer": (decoder, ["rnn.weight_hh_l0", "decoder.weight"]),
    "list": (added, ["1", "2"]),
    "dictionary": (lambda: torch.nn.ParameterDict({"a": on_manifold()}), ["a"]),
    "deep copy": (lambda: copy.deepcopy(Users()), ["turn"]),
    "pickle": (lambda: pickle.loads(pickle.dumps(Users())), ["turn"]),
    "graph": (lambda: torch.fx.symbolic_trace(Users()), ["turn"]),
    "pickled graph": (
        lambda: pickle.loads(pickle.dumps(torch.fx.symbolic_trace(Users()))),
        ["turn"],
    ),
}
CHANGES = {
    "to meta": lambda m: m.to("meta"),
    "to meta and empty": lambda m: m.to("meta").to_empty(device="cpu"),
    "double": lambda m: m.double(),
    "assign": lambda m: m.load_state_dict(averages(m), assign=True),
    "load": lambda m: m.load_state_dict(averages(m)),
}


def averages(module):
    """Return values that are off the manifold, as averages of weights are."""
    return {n: value / 2 for n, value in module.state_dict().items()}


def assert_kept(module, names):
    found = untouched(module)
    for name in names:
        assert type(found[name]) is geoopt.ManifoldParameter
        assert found[name].manifold == MANIFOLD
    for name in set(found) - set(names):
        assert not isinstance(getattr(found[name], "manifold", None), LowRankUnitary)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODULES)
def test_it_is_kept(name, change, swap):
    if swap and name.startswith("tied") and change in ("to meta", "to meta and empty", "double"):
        pytest.skip("torch cannot swap one parameter twice")
    if swap and name == "tied to a layer":
        pytest.skip("torch.nn.RNN has weak references to its parameters, which forbid the swap")
    make, names = MODULES[name]
    module = make()
    CHANGES[change](module)
    assert_kept(module, names)


def test_a_geoopt_parameter_on_another_manifold_changes_nothing():
    module = torch.nn.Module()
    module.direction = geoopt.ManifoldParameter(torch.ones(3), manifold=geoopt.Euclidean())
    assert type(module._parameters) is dict
    assert not module._load_state_dict_pre_hooks
    assert not module._load_state_dict_post_hooks


def test_a_manifold_that_comes_later_is_kept_once_the_parameter_is_set_anew():
    module = torch.nn.Module()
    module.turn = geoopt.ManifoldParameter(torch.eye(8), manifold=geoopt.Euclidean())
    module.turn.manifold = MANIFOLD
    module.turn = module.turn  # as the page on conversions says
    assert_kept(module.to("meta"), ["turn"])


@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), torch.nn.LSTM(2, 2)])
def test_modules_without_such_a_parameter_stay_as_torch_has_made_them(module):
    assert type(module._parameters) is dict
    assert not module._load_state_dict_post_hooks


def test_a_dictionary_of_another_library_stays():
    class Theirs(dict):
        """As DeepSpeed has one that gathers what is partitioned."""

    module = torch.nn.Linear(8, 8)
    module._parameters = Theirs(module._parameters)
    module.weight = on_manifold()
    assert type(module._parameters) is Theirs
    module.load_state_dict(module.state_dict())
    module.double()


def test_hooks_are_registered_once():
    module = Users()
    for _ in range(3):
        module._parameters = dict(module._parameters)
        module.turn = on_manifold()
        assert type(module._parameters) is Record
    assert len(module._load_state_dict_post_hooks) == 1


PROGRAMS = {
    "compiled": lambda m, x: torch.compile(m, fullgraph=True, backend="eager")(x),
    "exported": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "strictly exported": lambda m, x: torch.export.export(m, (x,), strict=True).module()(x),
    "traced": lambda m, x: torch.jit.trace(m, (x,))(x),
    "graph": lambda m, x: torch.fx.symbolic_trace(m)(x),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_users_modules(program):
    module, x = Users(), torch.randn(3, 8)
    torch._dynamo.reset()
    assert_within(PROGRAMS[program](module, x).detach(), module(x).detach(), 1e-6)
    assert_kept(module, ["turn"])


def test_a_compiled_functional_call_with_parameters():
    module, x = Users(), torch.randn(3, 8)
    fast = {n: torch.nn.Parameter(p.detach().clone()) for n, p in module.named_parameters()}
    torch._dynamo.reset()
    call = torch.compile(
        lambda fast, x: functional_call(module, fast, (x,)), fullgraph=True, backend="eager"
    )
    assert_within(call(fast, x).detach(), module(x).detach(), 1e-6)
    assert all(type(p) is torch.nn.Parameter for p in fast.values())
    assert_kept(module, ["turn"])


def test_ensembles_of_users_modules():
    modules, x = [Users() for _ in range(3)], torch.randn(4, 8)
    state = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    outputs = torch.vmap(lambda p, b: functional_call(base, (p, b), (x,)))(*state)
    for output, module in zip(outputs, modules, strict=True):
        assert_within(output.detach(), module(x).detach(), 1e-6)
    assert_kept(base, ["turn"])


class Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def test_a_parametrization_of_what_is_kept():
    module, x = Users(), torch.randn(3, 8)
    before = module(x)
    parametrize.register_parametrization(module, "turn", Twice())
    assert_within(module(x).detach(), before.detach(), 1e-6)
    assert_kept(module, ["parametrizations.turn.original"])
    parametrize.remove_parametrizations(module, "turn")
    assert_kept(module.to("meta"), ["turn"])


def test_a_weight_norm_takes_the_weight_away():
    module = torch.nn.Linear(8, 8)
    orthogonalize_(module, "weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(module)
    module(torch.randn(2, 8))
    torch.nn.utils.remove_weight_norm(module)
    assert type(untouched(module)["weight"]) is torch.nn.Parameter
