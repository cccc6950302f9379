"""No product of a step, of the geometry or of a layer is reduced, whatever the user has set."""

import geoopt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    backends,
)
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryConv2d,
    UnitaryRNN,
    UnitaryRNNCell,
    orthogonality_errors,
    orthogonalize_,
)
from tests._matrices import RETRACTIONS, SKETCHES, tangent_at, unitary
from tests._precision_settings import REDUCED, forget, products_are_full, snapshot, use

SINGLE = (torch.float32, torch.complex64)
HALF = (torch.bfloat16, torch.float16)


class Products(TorchDispatchMode):
    """Look at the settings while products run."""

    def __init__(self):
        super().__init__()
        self.full, self.reduced = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.rstrip("_") in ("mm", "bmm", "addmm", "baddbmm"):
            wide = all(t.dtype not in HALF for t in args if isinstance(t, torch.Tensor))
            (self.full if wide and products_are_full() else self.reduced).add(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=REDUCED, ids=str)
def reduced(request):
    use(*request.param)
    yield
    forget()


@pytest.fixture(params=SINGLE, ids=str)
def dtype(request):
    return request.param


pytestmark = pytest.mark.usefixtures("reduced")


def assert_full(function):
    before = snapshot()
    with Products() as products:
        function()
    assert products.full
    assert not products.reduced
    assert snapshot() == before


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("kind", [ProjUNNRiemannianSGD, ProjUNNRiemannianAdam])
def test_steps_and_the_probe_before_the_first(kind, retraction, sketch, dtype):
    manifold = LowRankUnitary(2, retraction=retraction, sketch=sketch)
    p = geoopt.ManifoldParameter(unitary(2, 6, 6, dtype=dtype), manifold=manifold)
    optimizer = kind([p], lr=0.1)

    def step():
        p.grad = torch.randn_like(p)
        optimizer.step()

    with backends.use("reference"):
        assert_full(step)
        assert_full(step)


def points(dtype):
    x, y = unitary(2, 2, 6, 6, dtype=dtype)
    return x, y, tangent_at(x), tangent_at(x)


METHODS = {
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "projx": lambda m, x, y, u, v: m.projx(x),
    "projx from afar": lambda m, x, y, u, v: m.projx(x + 0.1 * u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "expmap_transp": lambda m, x, y, u, v: m.expmap_transp(x, u, v),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "dist": lambda m, x, y, u, v: m.dist(x, y),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, y),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "retr_transp": lambda m, x, y, u, v: m.retr_transp(x, u, v),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "orthogonality_error": lambda m, x, y, u, v: m.orthogonality_error(x),
    "estimate_orthogonality_error": lambda m, x, y, u, v: m.estimate_orthogonality_error(x),
    "a check of a point": lambda m, x, y, u, v: m.assert_check_point_on_manifold(x),
    "a check of a vector": lambda m, x, y, u, v: m.assert_check_vector_on_tangent(x, u, atol=1e-4),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [1, None])
def test_the_geometry(name, k, dtype):
    manifold = LowRankUnitary(k)
    arguments = points(dtype)
    with backends.use("reference"):
        assert_full(lambda: METHODS[name](manifold, *arguments))


@pytest.mark.parametrize("name", ["proju", "transp", "inner"])
def test_the_geometry_of_rectangles(name, dtype):
    """What LowRankStiefel does in another way."""
    x, y = (x[..., :4] for x in unitary(2, 2, 6, 6, dtype=dtype))
    given = (x, y, y) if name != "proju" else (x, y)
    assert_full(lambda: getattr(LowRankStiefel(), name)(*given))


def test_all_methods_that_take_matrices_are_tested():
    """The names of the table are those of the manifold, but for what has no single product."""
    own = {n for c in LowRankUnitary.__mro__[:2] for n, f in vars(c).items() if callable(f)}
    without = {"inner", "random", "origin", "rotation", "check_point", "assert_check_point"}
    of_steps = {"sketch_direction", "rank", "spec"}
    public = {name for name in own if not name.startswith("_")} - {"extra_repr"}
    assert public - without - of_steps == METHODS.keys() & public


@pytest.mark.parametrize("name", ["dist", "projx"])
def test_derivatives(name, dtype):
    x, y, u, _ = points(dtype)
    x = (x + 0.1 * u).requires_grad_() if name == "projx" else x.requires_grad_()
    manifold = LowRankUnitary(1)
    loss = manifold.dist(x, y).sum() if name == "dist" else manifold.projx(x).abs().sum()
    assert_full(lambda: torch.autograd.grad(loss, x))


LAYERS = {
    "layer": lambda: (OrthogonalRNN(3, 8, 2, bidirectional=True), (5, 2, 3)),
    "tanh layer": lambda: (OrthogonalRNN(3, 8, nonlinearity="tanh"), (5, 2, 3)),
    "complex layer": lambda: (UnitaryRNN(3, 8), (5, 2, 3)),
    "gated layer": lambda: (OrthogonalGRU(3, 8, 2, bidirectional=True), (5, 2, 3)),
    "gated cell": lambda: (OrthogonalGRUCell(3, 8), (2, 3)),
    "cell": lambda: (OrthogonalRNNCell(3, 8), (2, 3)),
    "relu cell": lambda: (OrthogonalRNNCell(3, 8, nonlinearity="relu"), (2, 3)),
    "complex cell": lambda: (UnitaryRNNCell(3, 8), (2, 3)),
    "convolution": lambda: (OrthogonalConv2d(4, 4, (5, 5)), (2, 4, 5, 5)),
    "complex convolution": lambda: (UnitaryConv2d(4, 4, (5, 5)), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, size = LAYERS[name]()
    x = torch.randn(size) + (0j if isinstance(layer, UnitaryConv2d) else 0)
    assert_full(lambda: layer(x))


# A cell's backward pass is torch's own, and runs as the user has set it.
GUARDED = [name for name in LAYERS if "cell" not in name]
OUTPUTS = {
    "states": lambda layer, x: layer(x)[0] if isinstance(layer, torch.nn.RNNBase) else layer(x),
    "adjoint": lambda layer, x: layer.adjoint(x),
}


@pytest.mark.parametrize("within", [False, True], ids=["outside", "in autocast"])
@pytest.mark.parametrize(
    ("name", "of"),
    [
        *((name, "states") for name in GUARDED),
        *((name, "adjoint") for name in GUARDED if "convolution" in name),
    ],
)
def test_backward_passes_of_layers(name, of, within):
    layer, size = LAYERS[name]()
    x = torch.randn(size) + (0j if isinstance(layer, UnitaryConv2d) else 0)
    # An adjoint is without the bias.
    weights = (p for name, p in layer.named_parameters() if of == "states" or name != "bias")
    leaves = [x.requires_grad_(), *weights]

    def backward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=within):
            torch.autograd.grad(y, leaves, torch.ones_like(y))

    y = OUTPUTS[of](layer, x)
    assert_full(backward)


@pytest.mark.parametrize("name", [name for name in GUARDED if "convolution" not in name])
def test_the_first_derivatives_of_layers_that_are_differentiated_twice(name):
    layer, size = LAYERS[name]()
    states, _ = layer(torch.randn(size))

    def backward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.autograd.grad(
                states, list(layer.parameters()), torch.ones_like(states), create_graph=True
            )

    assert_full(backward)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_autocast(name):
    layer, size = LAYERS[name]()
    x = torch.randn(size) + (0j if isinstance(layer, UnitaryConv2d) else 0)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)

    assert_full(forward)


def test_what_asks_whether_weights_are_orthogonal():
    linear = torch.nn.Linear(6, 6)
    assert_full(lambda: (orthogonalize_(linear, "weight"), orthogonality_errors(linear)))
