"""Torch may be built without its package for many processes."""

import subprocess
import sys

PROGRAM = """
import sys, types
import geoopt, torch, torch._dynamo

# What torch leaves of it in such a build; it cannot be taken out of its compiler later.
stub = types.ModuleType("torch.distributed")
stub.is_available = lambda: False
stub.ProcessGroup = type("ProcessGroup", (), {})
for name in [name for name in sys.modules if name.startswith("torch.distributed")]:
    del sys.modules[name]
sys.modules["torch.distributed"] = torch.distributed = stub

import geoopt_projunn
from geoopt_projunn.distributed import keep_manifolds, sketch_gradients_

layer = torch.nn.Linear(8, 8)
geoopt_projunn.nn.orthogonalize_(layer, "weight")
with keep_manifolds(layer):
    pass
optimizer = geoopt_projunn.ProjUNNRiemannianSGD(layer.parameters(), 0.1, skip_nonfinite="all")
layer(torch.ones(2, 8)).square().sum().backward()
optimizer.step()
assert geoopt_projunn.nn.orthogonality_errors(layer)["weight"] < 1e-5
geoopt_projunn.diagnose(layer)
try:
    sketch_gradients_(layer.weight)
except RuntimeError as error:
    print(error)
"""


def test_the_package_works_without_torch_distributed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert "needs a process group" in done.stdout, done.stderr
