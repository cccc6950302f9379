"""A weight that several modules share is orthogonal in all of them, or refused."""

import pytest
import torch

from geoopt_projunn.nn import orthogonalize_
from tests._asserts import assert_unitary

SHARED = {
    "embedding of bounded length": (
        lambda: torch.nn.Embedding(8, 8, max_norm=0.5),
        "weight",
        r"of Embedding\) cannot be orthogonal with `max_norm`, which .* got max_norm=0.5; make the",
    ),
    "embedding with padding": (
        lambda: torch.nn.EmbeddingBag(8, 8, padding_idx=1),
        "weight",
        r"of EmbeddingBag\) cannot be orthogonal with `padding_idx`, which .* got padding_idx=1",
    ),
    "kernel": (
        lambda: torch.nn.Conv1d(4, 4, 3),
        "weight",
        r"of Conv1d\) must hold matrices, but is the kernel of a convolution",
    ),
    "stacked": (
        lambda: torch.nn.LSTM(8, 8),
        "weight_hh_l0",
        r"of LSTM\), of shape \(32, 8\), holds 4 matrices, .*give `blocks=4`",
    ),
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("inside", [True, False])
def test_a_weight_is_refused_by_every_module_that_holds_it(case, inside):
    make, name, words = SHARED[case]
    model = torch.nn.ModuleDict({"l": torch.nn.Linear(8, 8)})
    other = make()
    weight = model["l"].weight = getattr(other, name)
    before = weight.detach().clone()
    if inside:
        model["other"] = other
    place = f"other.{name}" if inside else name
    with pytest.raises((TypeError, ValueError), match=rf"`l.weight` \(also `{place}` {words}"):
        orthogonalize_(model, "l.weight")
    assert type(weight) is torch.nn.Parameter
    assert torch.equal(weight, before)


def test_a_weight_with_two_names_in_one_module_is_refused_under_both():
    module = torch.nn.Embedding(8, 8, max_norm=0.5)
    module.other = module.weight
    with pytest.raises(ValueError, match=r"`other` \(also `weight` of Embedding\) cannot be orth"):
        orthogonalize_(module, "other")


def test_a_shared_weight_that_all_modules_allow_is_made_orthogonal():
    model = torch.nn.ModuleDict({"e": torch.nn.Embedding(8, 8), "l": torch.nn.Linear(8, 8)})
    model["l"].weight = model["e"].weight
    assert_unitary(orthogonalize_(model, "l.weight").detach())
    assert model["e"].weight is model["l"].weight
