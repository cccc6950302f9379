"""Whatever torch does to a module, its recurrent weights stay on their manifolds."""

import copy
import io
import pickle
import warnings

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.nn import (
    ModReLU,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryRNN,
    UnitaryRNNCell,
    orthogonality_errors,
)
from tests.nn._kept import untouched

MODULES = {
    "real layer": lambda **o: OrthogonalRNN(3, 8, 2, bidirectional=True, k=2, **o),
    "real layer, relu": lambda **o: OrthogonalRNN(3, 8, 2, nonlinearity="relu", k=2, **o),
    "complex layer": lambda **o: UnitaryRNN(3, 8, 2, bidirectional=True, k=2, **o),
    "real cell": lambda **o: OrthogonalRNNCell(3, 8, k=2, **o),
    "complex cell": lambda **o: UnitaryRNNCell(3, 8, k=2, **o),
}
every_module = pytest.mark.parametrize("name", MODULES)


class Model(torch.nn.Module):
    """The module as a part of another, beside a plain one."""

    def __init__(self, module):
        super().__init__()
        self.part = module
        self.plain = torch.nn.Linear(3, 3)


every_conversion = pytest.mark.usefixtures("swap")


def recurrent(module):
    return {n: p for n, p in module.named_parameters() if n.split(".")[-1].startswith("weight_hh")}


def assert_kept(module, k=2):
    found = untouched(module)
    weights = {n: p for n, p in found.items() if n.split(".")[-1].startswith("weight_hh")}
    assert weights
    for p in weights.values():
        assert type(p) is geoopt.ManifoldParameter
        assert p.manifold == LowRankUnitary(k)
    for name, p in found.items():
        assert name in weights or type(p) is torch.nn.Parameter
    for part in module.modules():
        if isinstance(part, torch.nn.RNNBase):
            assert all(a is getattr(part, n) for a, n in _flat(part))


def _flat(layer):
    return zip(layer._flat_weights, layer._flat_weights_names, strict=True)


def train_a_step(module, optimizer=None):
    """Take a step that moves every recurrent weight and stays on the manifold."""
    part = getattr(module, "part", module)
    optimizer = optimizer or ProjUNNRiemannianAdam(module.parameters(), lr=0.1)
    dtype = part.weight_ih_l0.dtype if hasattr(part, "weight_ih_l0") else part.weight_ih.dtype
    x = torch.randn(4, 2, 3, dtype=dtype)
    optimizer.zero_grad()
    if isinstance(part, torch.nn.RNN):
        states, _ = part(x)
    else:
        states = part(x[0], part(x[1]))
    before = {name: p.detach().clone() for name, p in recurrent(module).items()}
    (states - 1).abs().square().sum().backward()
    optimizer.step()
    for name, p in recurrent(module).items():
        assert not torch.equal(p, before[name])
    assert max(orthogonality_errors(module).values()) < 1e-4
    assert len(orthogonality_errors(module)) == len(before)


@every_module
@every_conversion
@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.float64),
        lambda m: m.double(),
        lambda m: m.double().float(),
        lambda m: m.to("cpu"),
        lambda m: m.cpu(),
        lambda m: m.to(torch.ones(1, dtype=torch.float64)),
        lambda m: m.share_memory(),
        lambda m: m.requires_grad_(True),
        lambda m: m.train(),
    ],
    ids=["to64", "double", "double float", "to cpu", "cpu", "to like", "share", "grad", "train"],
)
def test_a_conversion_keeps_it(name, convert):
    module = Model(MODULES[name]())
    assert convert(module) is module
    assert_kept(module)
    train_a_step(module)


@every_module
@every_conversion
def test_precision_changes_and_the_field_does_not(name):
    module = MODULES[name]()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for convert, bits in ((lambda m: m.double(), 64), (lambda m: m.to(torch.float32), 32)):
        convert(module)
        for n, p in module.named_parameters():
            assert p.is_complex() == before[n].is_complex()
            assert torch.finfo(p.dtype).bits == bits
            assert torch.equal(p.to(before[n].dtype), before[n])


@pytest.mark.parametrize("name", ["complex layer", "complex cell"])
@every_conversion
def test_a_complex_dtype_means_its_precision(name):
    module = MODULES[name]()
    with pytest.warns(UserWarning, match="Complex modules are a new feature"):
        module.to(torch.complex128)
    for n, p in module.named_parameters():
        assert p.dtype == (torch.float64 if n.startswith("offset") else torch.complex128)
    assert_kept(module)
    with pytest.warns(UserWarning, match="Complex modules are a new feature"):
        activation = ModReLU(4).to(torch.complex128)
    assert activation.offset.dtype == torch.float64


@every_module
@every_conversion
def test_a_conversion_in_place_keeps_the_objects_that_an_optimizer_holds(name):
    module = Model(MODULES[name]())
    objects = dict(module.named_parameters())
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    module.double()
    assert all(objects[n] is p for n, p in module.named_parameters())
    train_a_step(module, optimizer=optimizer)


@every_module
@every_conversion
def test_gradients_are_converted_too(name):
    module = MODULES[name]()
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    module.double()
    for p in module.parameters():
        assert p.grad.dtype == p.dtype
        assert (p.grad == 1).all()
    assert_kept(module)


@every_module
@every_conversion
def test_meta_and_back(name):
    module = Model(MODULES[name]()).to("meta")
    assert all(p.is_meta for p in module.parameters())
    assert_kept(module)
    module.to_empty(device="cpu")
    assert_kept(module)
    module.part.reset_parameters()
    assert max(orthogonality_errors(module).values()) < 1e-5
    assert all(p.isfinite().all() for p in module.part.parameters())
    train_a_step(module.part)


@every_module
def test_born_without_data(name):
    module = MODULES[name](device="meta")
    assert all(p.is_meta for p in module.parameters())
    assert_kept(module)
    assert_kept(module.to_empty(device="cpu"))
    with torch.device("meta"):
        assert_kept(MODULES[name]())
    module.reset_parameters()
    train_a_step(module)


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_a_forward_pass_without_data_has_the_shapes(kind):
    states, last = kind(3, 8, 2, bidirectional=True, device="meta")(
        torch.empty(5, 2, 3, device="meta")
    )
    assert states.shape == (5, 2, 16)
    assert last.shape == (4, 2, 8)


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_skip_init(kind):
    module = torch.nn.utils.skip_init(kind, 3, 8, k=2)
    assert_kept(module)


@every_module
@every_conversion
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("keep_vars", [False, True])
def test_load_state_dict(name, assign, keep_vars):
    source, target = Model(MODULES[name]()), Model(MODULES[name]())
    values = {n: p.detach().clone() for n, p in source.named_parameters()}
    target.load_state_dict(source.state_dict(keep_vars=keep_vars), assign=assign)
    assert_kept(target)
    assert all(torch.equal(p, values[n]) for n, p in target.named_parameters())
    train_a_step(target)


@every_module
@every_conversion
def test_a_plain_checkpoint_assigned_to_a_module_without_data(name):
    state = {n: p.detach().clone() for n, p in MODULES[name]().state_dict().items()}
    target = MODULES[name](device="meta")
    target.load_state_dict(state, assign=True)
    assert_kept(target)
    train_a_step(target)


@every_module
def test_copies(name):
    module = Model(MODULES[name]())
    for duplicate in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_kept(duplicate)
        for n, p in duplicate.named_parameters():
            assert torch.equal(p, module.get_parameter(n))
            assert p is not module.get_parameter(n)
        train_a_step(duplicate)


@every_module
def test_files(name):
    module, target = MODULES[name](), MODULES[name]()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert_kept(target)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    for loaded in (target, whole):
        assert all(torch.equal(p, module.get_parameter(n)) for n, p in loaded.named_parameters())
        assert_kept(loaded)
        train_a_step(loaded)


@every_module
@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.bfloat16()])
@every_conversion
def test_half_precision_is_refused_and_nothing_changes(name, convert):
    module = MODULES[name]()
    before = {n: (p, p.detach().clone()) for n, p in module.named_parameters()}
    with pytest.raises(
        TypeError, match=r"`weight_hh.*` of .* it must have one of the dtypes .* half precis"
    ):
        convert(module)
    for n, p in module.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])
        assert p.dtype == before[n][1].dtype
    assert_kept(module)
    train_a_step(module)


@pytest.mark.parametrize("name", ["real layer", "real cell"])
def test_a_real_module_does_not_become_complex(name):
    module = MODULES[name]()
    with (
        pytest.warns(UserWarning, match="Complex modules are a new feature"),
        pytest.raises(
            TypeError, match=r"must be real, got torch.complex64; for complex weights use Unitary"
        ),
    ):
        module.to(torch.complex64)
    assert_kept(module)
    assert not any(p.is_complex() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "dtype", "rule"),
    [
        ("real layer", torch.bfloat16, "half precision cannot hold orthogonality"),
        ("complex layer", torch.bfloat16, "half precision cannot hold orthogonality"),
        ("real layer", torch.complex64, "must be real, got torch.complex64"),
        ("complex layer", torch.float32, "must be complex, got torch.float32"),
    ],
)
def test_assigning_another_kind_of_weight_is_refused(name, dtype, rule):
    module = MODULES[name]()
    before = dict(module.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of imaginary parts that are discarded
        state = {n: p.detach().to(dtype) for n, p in before.items()}
    with pytest.raises(RuntimeError, match=rule):
        module.load_state_dict(state, assign=True)
    assert all(before[n] is p for n, p in module.named_parameters())
    assert_kept(module)


def test_weights_shared_by_two_layers_stay_shared():
    first, second = OrthogonalRNN(3, 8, k=2), OrthogonalRNN(3, 8, k=2)
    second.weight_hh_l0 = first.weight_hh_l0
    module = torch.nn.ModuleList([first, second]).double()
    assert first.weight_hh_l0 is second.weight_hh_l0
    assert_kept(module)
