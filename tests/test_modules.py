"""Functions of a model say so if they get its parameters, or a list of models."""

import pytest
import torch

import geoopt_projunn
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import orthogonality_errors, orthogonalize_, project_

FUNCTIONS = {
    "param_groups": lambda model: geoopt_projunn.param_groups(model, lr=0.1, steps=10),
    "diagnose": geoopt_projunn.diagnose,
    "metrics": geoopt_projunn.metrics,
    "orthogonality_errors": orthogonality_errors,
    "project_": project_,
    "orthogonalize_": lambda model: orthogonalize_(model, "weight"),
    "keep_manifolds": lambda model: keep_manifolds(model).__enter__(),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_of_a_model_takes_nothing_else(function):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    for given in (model.parameters(), model.weight, [model], model.state_dict(), optimizer):
        name = type(given).__name__
        with pytest.raises(TypeError, match=f"`mod[a-z]*` must be a torch.nn.Module, got {name};"):
            FUNCTIONS[function](given)
