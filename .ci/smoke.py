"""Try an installed package from outside of its source: a short training, and what it says.

python smoke.py with-kernels | without-kernels | either
"""

import sys
import warnings
from importlib.util import find_spec

import torch

import geoopt_projunn
from geoopt_projunn import ProjUNNRiemannianSGD, param_groups
from geoopt_projunn.nn import OrthogonalLinear, orthogonality_errors

expected = sys.argv[1]
torch.manual_seed(0)
target, model = OrthogonalLinear(64, 32), OrthogonalLinear(64, 32, k=8)
optimizer = ProjUNNRiemannianSGD(param_groups(model, lr=0.1, steps=200), momentum=0.9)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
losses = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(200):
        x = torch.randn(32, 64)
        loss = (model(x) - target(x).detach()).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
said = [str(one.message) for one in caught if "C++ kernels" in str(one.message)]
built = "cpu" in geoopt_projunn.backends.available()
launches = find_spec("geoopt_projunn.backends.triton._launches") is not None
error = orthogonality_errors(model)["weight"]

print(geoopt_projunn.__file__, geoopt_projunn.__version__, geoopt_projunn.backends.available())
print(f"torch {torch.__version__}: loss {losses[0]:.1f}, then {losses[-1]:.1e}; error {error:.0e}")
print(*said, sep="\n")
assert losses[-1] < losses[0] / 100
assert error < 1e-5
assert len(said) == (0 if built else 1)
assert expected == "either" or built == launches == (expected == "with-kernels"), expected
