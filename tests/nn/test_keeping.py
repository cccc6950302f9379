"""Whatever torch does to a module, its recurrent weights stay on their manifolds."""

import io

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.nn import (
    ModReLU,
    OrthogonalRNN,
    UnitaryRNN,
    orthogonality_errors,
)
from tests.nn._recurrent import (
    MODULES,
    Model,
    assert_kept,
    every_conversion,
    every_module,
    train_a_step,
)


@every_module
@every_conversion
@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.float64),
        lambda m: m.double(),
        lambda m: m.double().float(),
        lambda m: m.cpu(),
        lambda m: m.to(torch.ones(1, dtype=torch.float64)),
        lambda m: m.share_memory(),
        lambda m: m.requires_grad_(True),
    ],
    ids=["to64", "double", "double float", "cpu", "to like", "share", "grad"],
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


@every_module
@every_conversion
@pytest.mark.parametrize("without_data", [False, True])
def test_a_plain_checkpoint_of_a_file_is_assigned(name, without_data):
    file = io.BytesIO()
    torch.save(MODULES[name]().state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    values = {n: p.clone() for n, p in state.items()}
    target = MODULES[name](device="meta" if without_data else "cpu")
    target.load_state_dict(state, assign=True)
    assert_kept(target)
    assert all(torch.equal(p, values[n]) for n, p in target.named_parameters())
    train_a_step(target)


def test_weights_shared_by_two_layers_stay_shared():
    first, second = OrthogonalRNN(3, 8, k=2), OrthogonalRNN(3, 8, k=2)
    second.weight_hh_l0 = first.weight_hh_l0
    module = torch.nn.ModuleList([first, second]).double()
    assert first.weight_hh_l0 is second.weight_hh_l0
    assert_kept(module)
