"""Compiled steps are the eager ones to rounding."""

import shutil
import warnings

import geoopt
import pytest
import torch
from torch._dynamo.utils import counters

from geoopt_projunn import LowRankStiefel, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends.torch_compile import compiled
from tests._able import compile_steps, limit_compilations_of_one_function, skip_unless

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    same_bits,
    unitary_parameter,
)

pytestmark = [
    pytest.mark.skipif(
        not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler"
    ),
    # torch's own, where it compiles what follows a graph break.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SGD, ADAM = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
# Every sketch, retraction and rule once, with and without a batch.
KINDS = {
    "sgd": (SGD, {}, (24, 24), {}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, (3, 9, 9), {"sketch": "lsi", "k": 2}),
    "feedback": (SGD, {"error_feedback": 0.9}, (12, 12), {"retraction": "cayley", "sweep": 3}),
    "adam": (
        ADAM,
        {"second_moment": "elementwise"},
        (2, 12, 12),
        {"sketch": "column", "retraction": "polar"},
    ),
    "scalar": (ADAM, {"second_moment": "scalar", "amsgrad": True}, (12, 12), {"k": None}),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    skip_unless(compile_steps)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def reference():
    # The kernels take most steps whole, so that there is nothing to compile.
    with backends.use("reference"):
        yield


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("name", KINDS)
def test_compiled_steps_are_the_eager_ones(name):
    kind, options, shape, manifold = KINDS[name]
    start = rotation(*shape, dtype=torch.float64)
    p, q = (on_manifold(start, **{"k": 1, **manifold}) for _ in range(2))
    eager, compiled = kind([p], lr=0.1, **options), kind([q], lr=0.1, compile=True, **options)
    grads = gradients(p, 6)
    for optimizer, parameter in ((eager, p), (compiled, q)):
        feed(optimizer, parameter, grads[:3])
        optimizer.param_groups[0]["lr"] = 0.05
        feed(optimizer, parameter, grads[3:])
    assert_within(q, p, 1e-11)
    assert not same_bits(q, start)
    for key, value in eager.state[p].items():
        assert_within(compiled.state[q][key].double(), value.double(), 1e-10)
    assert graphs() == 1  # also for the other learning rate


@pytest.mark.usefixtures("reference")
def test_so_they_are_of_matrices_stored_by_columns():
    manifold = LowRankStiefel(2)
    start = manifold.random(4, 12, dtype=torch.float64).detach().as_subclass(torch.Tensor)
    p, q = (geoopt.ManifoldParameter(start.clone(), manifold=manifold) for _ in range(2))
    grads = gradients(p, 3)
    feed(ADAM([p], lr=0.01), p, grads)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        feed(ADAM([q], lr=0.01, compile=True), q, grads)
    assert graphs() > 0
    assert_within(q, p, 1e-12)


@pytest.mark.usefixtures("reference")
def test_equal_kinds_share_a_compilation_and_others_have_their_own():
    skip_unless(limit_compilations_of_one_function)
    alike = [unitary_parameter(300, 300) for _ in range(2)]
    other = unitary_parameter(280, 280)
    optimizer = SGD([*alike, other], lr=torch.tensor(0.1), compile=True)
    for p in (*alike, other):
        p.grad = torch.randn_like(p)
    with torch._dynamo.config.patch(recompile_limit=1):  # not the one that counts
        optimizer.step()
    assert graphs() == 2
    for p in (*alike, other):
        assert orthogonality_error(p) < 1e-4


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_the_compiler_does_not_speed_up_takes_the_eager_step(kind):
    # Of large matrices, torch's own updates in place would be compiled into copies.
    for start in (torch.eye(512), rotation(4, 8, 8, dtype=torch.complex64)):
        assert_takes_the_eager_step(kind, start)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_that_the_kernels_take_are_not_compiled(kind):
    assert_takes_the_eager_step(kind, rotation(3, 24, 24))


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize(
    ("kind", "options", "manifold"),
    [
        (SGD, {}, {"k": None}),
        (SGD, {"momentum": 0.9}, {"k": None}),
        (ADAM, {"second_moment": "elementwise"}, {"k": None}),
        (
            SGD,
            {"momentum": 0.9, "error_feedback": 0.9},
            {"sketch": "column", "retraction": "polar"},
        ),
    ],
)
def test_steps_that_the_kernels_take_in_part_are_compiled(manifold, kind, options):
    start = rotation(3, 24, 24, dtype=torch.float64)
    p, q = (on_manifold(start, **{"k": 1, **manifold}) for _ in range(2))
    grads = gradients(p, 3)
    feed(kind([p], lr=0.1, **options), p, grads)
    feed(kind([q], lr=0.1, compile=True, **options), q, grads)
    assert_within(q, p, 1e-11)
    assert graphs() == 1


def assert_takes_the_eager_step(kind, start):
    p, q = on_manifold(start), on_manifold(start)
    grads = gradients(p, 2)
    feed(kind([p], lr=0.01), p, grads)
    feed(kind([q], lr=0.01, compile=True), q, grads)
    assert_same_bits(p, q)
    assert graphs() == 0


@pytest.mark.usefixtures("reference")
def test_where_compilation_fails_a_warning_says_so_and_the_step_is_taken():
    start = [rotation(n, n) for n in (8, 9)]
    eager, others = ([on_manifold(x) for x in start] for _ in range(2))
    compiled.cache_clear()
    with torch._dynamo.config.patch(accumulated_recompile_limit=1):
        for parameters, compile in ((eager, False), (others, True)):
            optimizer = SGD(parameters, lr=0.1, compile=compile)
            for p, x in zip(parameters, start, strict=True):
                p.grad = torch.ones_like(x).tril()
            if compile:
                what = "`compile=True` has no effect from here on"
                with pytest.warns(UserWarning, match=what) as record:
                    optimizer.step()
                assert record[0].filename == __file__
            else:
                optimizer.step()
            optimizer.step()  # without another warning
    compiled.cache_clear()
    for p, q in zip(eager, others, strict=True):
        assert_within(q, p, 1e-6)


@pytest.mark.usefixtures("reference")
@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
def test_a_compiled_step_that_is_not_finite_is_left_out():
    p = unitary_parameter(2, 8, 8)
    before = p.detach().clone()
    optimizer = SGD([p], lr=0.1, momentum=0.9, compile=True)
    p.grad = torch.ones_like(p)
    p.grad[0, 3, 3] = torch.nan
    optimizer.step()
    assert_same_bits(p[0], before[0])
    assert not same_bits(p[1], before[1])
    assert optimizer.skipped_steps == 1


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("compile", [False, True])
def test_a_compiled_training_function_takes_the_riemannian_step(compile):
    start, target = rotation(8, 8, dtype=torch.float64), rotation(8, 8, dtype=torch.float64)
    p, q = (on_manifold(start) for _ in range(2))
    eager, optimizer = SGD([p], lr=0.1), SGD([q], lr=0.1, compile=compile)

    def train(parameter, optimizer):
        optimizer.zero_grad()
        loss = (parameter - target).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    whole = torch.compile(train)
    for _ in range(4):
        assert_within(whole(q, optimizer), train(p, eager), 1e-11)
    assert_within(q, p, 1e-11)
    assert orthogonality_error(q) < 1e-12
