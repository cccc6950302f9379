"""The methods of the update benchmark take the steps they are named by."""

import shutil

import pytest
import torch

from geoopt_projunn.linalg.rows import IN_TORCH, Products
from geoopt_projunn.sketches import SKETCHES
from tests._able import compile_steps, skip_unless
from tests._asserts import assert_unitary
from tests._update import COPY, METHODS, STEPPED, built, update_methods, update_problem

OTHERS = [
    pytest.param(method, batch, dtype, id=f"{method.name}, {dtype}")
    for batch, dtype in (((3,), torch.float32), ((2,), torch.complex64))
    for method in STEPPED
    if method.batched and (method.complex or not dtype.is_complex)
]


def along(d, w):
    """Return the linear loss whose gradient is d, summed over a batch."""
    return (d.conj() * w).sum().real


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("n", [2, 7, 32])
def test_the_start_is_unitary_and_the_gradient_has_length_one(n, batch, dtype):
    problem = update_problem.draw(n, batch, dtype)
    assert problem.x.shape == problem.d.shape == (*batch, n, n)
    assert problem.x.dtype == problem.d.dtype == dtype
    assert_unitary(problem.x)
    torch.testing.assert_close(torch.linalg.matrix_norm(problem.d), torch.ones(batch))


@pytest.mark.parametrize("method", STEPPED, ids=lambda method: method.name)
def test_a_method_starts_at_the_point_stays_orthogonal_and_descends(method):
    torch.manual_seed(0)
    problem = update_problem.draw(40)
    subject = built(method, problem)
    start = subject.weight().clone()
    torch.testing.assert_close(start, problem.x, atol=1e-5, rtol=0)
    for _ in range(5):
        subject.step()
    end = subject.weight()
    error = torch.linalg.matrix_norm(end.mT @ end - torch.eye(40))
    assert error < 2e-5
    assert torch.linalg.matrix_norm(end - start) > 1e-2
    assert along(problem.d, end) < along(problem.d, start) - 1e-4


@pytest.mark.parametrize(
    "method", [m for m in STEPPED if m.rectangular], ids=lambda method: method.name
)
def test_methods_of_rectangles_take_them(method):
    problem = update_problem.draw(64, p=16)
    assert_unitary(problem.x)
    assert problem.n == 64
    subject = built(method, problem)
    for _ in range(3):
        subject.step()
    end = subject.weight()
    assert end.shape == (64, 16)
    assert torch.linalg.matrix_norm(end.mT @ end - torch.eye(16)) < 2e-5
    assert along(problem.d, end) < along(problem.d, problem.x) - 1e-4


@pytest.mark.parametrize(("method", "batch", "dtype"), OTHERS)
def test_methods_of_batches_and_complex_matrices_do_so_as_well(method, batch, dtype):
    problem = update_problem.draw(32, batch, dtype)
    subject = built(method, problem)
    for _ in range(3):
        subject.step()
    end = subject.weight()
    assert torch.linalg.matrix_norm(end.mH @ end - torch.eye(32)).max() < 2e-5
    assert along(problem.d, end) < along(problem.d, problem.x) - 1e-4


def test_a_copy_takes_the_gradient_to_memory_of_its_own():
    problem = update_problem.draw(64)
    before = problem.x.clone()
    subject = COPY.build(problem)
    assert torch.equal(subject.weight(), problem.x)
    subject.step()
    assert torch.equal(subject.weight(), problem.d)
    assert torch.equal(problem.x, before)
    assert COPY.order == 2


class Passes(Products):
    """Counts those over one matrix and those over another."""

    def __init__(self, x, d):
        self.matrices, self.counts = (x, d), [0, 0]

    def counted(self, x):
        (index,) = (i for i, matrix in enumerate(self.matrices) if matrix is x)
        self.counts[index] += 1

    def times(self, rows, x):
        self.counted(x)
        return super().times(rows, x)

    def times_adjoint(self, rows, x):
        self.counted(x)
        return super().times_adjoint(rows, x)

    def both_sides(self, left, right, x):
        self.counted(x)
        return IN_TORCH.both_sides(left, right, x)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("sketch", "passes", "over_x_and_d"),
    [("tangent", update_methods.TANGENT, [4, 2]), ("lsi", update_methods.LSI, [1, 2])],
)
def test_a_sketch_passes_as_often_as_its_floor_takes_for_granted(sketch, passes, over_x_and_d, k):
    problem = update_problem.draw(32, (1,))
    counter = Passes(problem.x, problem.d)
    SKETCHES[sketch](problem.x, problem.d, k, torch.zeros(1, dtype=torch.int64), counter)
    assert counter.counts == over_x_and_d
    assert sum(counter.counts) + update_methods.TURN == passes


def test_what_a_rule_keeps_is_passed_over_as_well():
    """Both products make the direction from it, and then it is read and written, from gradients."""
    passes = {method.name: method.passes for method in METHODS}
    for name, buffers, more in (
        ("SGD, k = 16", 0, 0),
        ("SGD, momentum, k = 1", 1, 1),
        ("Adam, k = 1", 2, 1),
        ("Adam, scalar, k = 1", 1, 2),
    ):
        assert passes[name] == update_methods.TANGENT + (2 + 2) * buffers + more


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_methods_take_the_steps_of_the_others():
    skip_unless(compile_steps)
    problem = update_problem.draw(40, (), torch.float32)
    others = {method.name: method for method in METHODS}
    compiled = [m for m in update_methods.methods("cpu", compile=True) if "compiled" in m.name]
    assert len(compiled) == len(update_methods.RANKS) + 2
    pair = [compiled[0], others[compiled[0].name.removesuffix(", compiled")]]
    updates = [method.build(problem) for method in pair]
    for update in updates:
        update.step()
    assert (updates[0].weight() - updates[1].weight()).abs().max() < 1e-6
    assert not torch.equal(updates[0].weight(), problem.x)
    torch._dynamo.reset()


def test_a_copy_counts_what_a_processor_fetches_before_it_writes():
    assert [update_methods.passes_of_copy(device) for device in ("cpu", "cuda")] == [3, 2]
