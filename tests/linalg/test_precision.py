import os
import subprocess
import sys
import threading

import pytest
import torch

from geoopt_projunn.linalg import precision
from geoopt_projunn.linalg.precision import WIDE, full_precision, full_precision_cudnn
from tests._matrices import DTYPES, wide
from tests._precision_settings import (
    HAS_NEW,
    REDUCED,
    forget,
    products_are_full,
    snapshot,
    use,
)


@full_precision
def multiply(a, b, *, scale=1.0):
    """Multiply."""
    return scale * (a @ b)


def test_cores_are_computed_in_double_precision_of_the_same_kind():
    assert {dtype: wide(dtype) for dtype in DTYPES} == WIDE


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_a_full_precision_function(half):
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=half):
        assert (a @ b).dtype == half
        product = multiply(a, b, scale=2.0)
        assert (a @ b).dtype == half
    assert torch.equal(product, 2.0 * (a @ b))


def test_autocast_is_restored_when_the_function_raises():
    @full_precision
    def fail():
        raise RuntimeError("on purpose")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="on purpose"):
            fail()
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_the_function_keeps_its_name_and_its_documentation():
    assert multiply.__name__ == "multiply"
    assert multiply.__doc__ == "Multiply."


@pytest.fixture
def reduced(request):
    use(*request.param)
    assert not products_are_full()
    yield
    forget()


@pytest.mark.parametrize("reduced", REDUCED, ids=str, indirect=True)
def test_the_products_of_a_full_precision_function_are_not_reduced(reduced):
    before = snapshot()
    inside = []

    @full_precision
    def look():
        inside.append(products_are_full())
        return nested()

    @full_precision
    def nested():
        inside.append(products_are_full())
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            look()
        assert snapshot() == before
    assert inside == [True] * 4


@pytest.mark.skipif(not HAS_NEW, reason="this torch has one interface")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_settings_in_any_order_by_either_interface_are_as_before():
    command = [sys.executable, "-m", "tests.linalg._orders_of_settings"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "308 cases\n"


@pytest.mark.parametrize("reduced", REDUCED, ids=str, indirect=True)
def test_the_last_of_several_threads_puts_the_settings_back(reduced):
    before = snapshot()
    entered, leave, full = threading.Event(), threading.Event(), []

    @full_precision
    def wait():
        entered.set()
        leave.wait(10)
        full.append(products_are_full())

    @full_precision
    def finish_first():
        thread.start()
        entered.wait(10)

    thread = threading.Thread(target=wait)
    finish_first()
    leave.set()
    thread.join()
    assert full == [True]
    assert snapshot() == before


@pytest.mark.parametrize("value", ["high", "medium"])
def test_with_the_old_interface_alone_the_setting_is_raised_and_put_back(value, monkeypatch):
    monkeypatch.setattr(precision, "_PRODUCTS", precision._Region(precision._raise_old_products))
    torch.set_float32_matmul_precision(value)
    try:
        inside = full_precision(torch.get_float32_matmul_precision)()
        assert torch.get_float32_matmul_precision() == value
    finally:
        forget()
    assert inside == "highest"


@pytest.mark.parametrize("reduced", REDUCED, ids=str, indirect=True)
def test_what_is_compiled_with_reduced_products_says_so(reduced):
    torch.compiler.reset()
    compiled = torch.compile(multiply, fullgraph=True, backend="eager")
    a = torch.randn(4, 4)
    with pytest.warns(UserWarning, match="full precision.*reduced to TF32 or bfloat16.*highest"):
        compiled(a, a)


def test_what_is_compiled_with_full_products_is_silent():
    torch.compiler.reset()
    a = torch.randn(4, 4)
    compiled = torch.compile(multiply, fullgraph=True, backend="eager")
    assert torch.equal(compiled(a, a), a @ a)


@pytest.mark.parametrize("allowed", [True, False])
def test_with_the_old_interface_alone_cudnn_is_as_before(allowed, monkeypatch):
    class Cudnn:
        allow_tf32 = allowed

    monkeypatch.setattr(precision, "_CUDNN_RNN", precision._Region(precision._raise_old_cudnn))
    monkeypatch.setattr(torch.backends, "cudnn", Cudnn)
    assert full_precision_cudnn(lambda: Cudnn.allow_tf32)() is False
    assert Cudnn.allow_tf32 is allowed
