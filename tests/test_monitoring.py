"""One call gives a logger what it can take."""

from types import SimpleNamespace

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD, metrics
from geoopt_projunn.nn import OrthogonalLinear, OrthogonalRNN, orthogonality_errors


@pytest.fixture
def model():
    return torch.nn.ModuleDict({"rnn": OrthogonalRNN(3, 8), "linear": OrthogonalLinear(8, 4)})


def spoil(model, name):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.get_parameter(name).grad[0, 0] = torch.nan


@pytest.mark.filterwarnings("ignore:A step of")
@pytest.mark.parametrize("named", [True, False])
def test_it_has_the_errors_and_the_skipped_steps_of_each_matrix(model, named):
    params = model.named_parameters() if named else model.parameters()
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    before = metrics(model, optimizer)
    spoil(model, "linear.weight")
    optimizer.step()
    after = metrics(model, optimizer)
    errors = orthogonality_errors(model)
    assert set(errors) == {"rnn.weight_hh_l0", "linear.weight"}
    assert after == {
        **{f"orthogonality_error/{name}": error for name, error in errors.items()},
        "skipped_steps/rnn.weight_hh_l0": 0.0,
        "skipped_steps/linear.weight": 1.0,
        "skipped_steps": 1.0,
    }
    assert list(before) == list(after)
    assert all(type(value) is float for value in (*before.values(), *after.values()))


def test_wrappers_are_opened(model):
    optimizer = ProjUNNRiemannianSGD(model.named_parameters(), lr=0.1)
    expected = metrics(model, optimizer)
    for wrapper in (
        SimpleNamespace(optimizer=optimizer),
        SimpleNamespace(optim=optimizer),
        SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer)),
    ):
        assert metrics(model, wrapper) == expected


def test_without_an_optimizer_it_has_the_errors_alone(model):
    with torch.no_grad():
        model["linear"].weight.mul_(2)
    assert metrics(model, exact=True) == {
        f"orthogonality_error/{name}": error
        for name, error in orthogonality_errors(model, exact=True).items()
    }


def test_an_optimizer_that_counts_nothing_is_refused_by_name(model):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(
        TypeError, match=r"must be a ProjUNNRiemannianSGD .* got SGD, .* leave .optimizer. out"
    ):
        metrics(model, optimizer)


def test_the_sum_counts_matrices_and_no_other_parameters():
    model = torch.nn.Sequential(OrthogonalLinear(4, 4, bias=False), torch.nn.Linear(4, 2))
    optimizer = ProjUNNRiemannianSGD(model.named_parameters(), lr=0.1, skip_nonfinite="all")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[0].weight.grad[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    assert metrics(model, optimizer)["skipped_steps"] == 1
