"""The kernels of modules, interpreted on a CPU and compiled for GPUs."""

from types import SimpleNamespace

import pytest
import torch

from geoopt_projunn.backends.triton import support
from geoopt_projunn.nn.kernels.launching import serve
from tests._triton import (
    ARCHITECTURES,
    assert_runs,
    compile_ahead,
    needs_triton,
    run_interpreted,
)

TYPES = {"*fp32": (2.0**-63, 2.0**-23), "*fp64": (2.0**-511, 2.0**-52)}
POINTERS = ("z", "grad", "h", "offset", "along", "spectrum", "own", "pairs")
CONSTANTS = {"BLOCK": 256, "WATCH": True, "ROWS": 32, "FREQUENCIES": 32, "WEIGHT": 0.7}


def kernels():
    from geoopt_projunn.nn.kernels import frequencies, modrelu

    return {
        name.strip("_"): kernel
        for module in (modrelu, frequencies)
        for name, kernel in vars(module).items()
        if name.startswith(("_forward", "_backward", "_gather", "_scatter"))
    }


@pytest.mark.parametrize("lack", [None, "Triton is not installed"])
def test_they_serve_a_gpu_that_the_backend_serves(lack, monkeypatch):
    monkeypatch.setattr(support, "lack", lambda device: lack)
    monkeypatch.setattr(support, "INTERPRETED", False)
    on_gpu = SimpleNamespace(is_cuda=True, is_cpu=False, device=torch.device("cuda", 1))
    assert serve(on_gpu) == (lack is None)
    assert not serve(torch.empty(1))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not serve(on_gpu)


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pointer", TYPES)
def test_every_kernel_compiles_and_keeps_all_in_registers(pointer, architecture):
    found = kernels()
    assert len(found) == 6
    tiny, eps = TYPES[pointer]
    for name, kernel in found.items():
        constants = {**CONSTANTS, "TINY": tiny, "EPS": eps}
        own = {key: value for key, value in constants.items() if key in kernel.arg_names}
        types = {
            argument: pointer
            if argument in POINTERS
            else "*i64"
            if argument in ("positions", "sources")
            else "i32"
            for argument in kernel.arg_names
            if argument not in own
        }
        made = compile_ahead(source(kernel, types, own), architecture)
        assert_runs(made, architecture, name)
        assert made.spilt == 0, name


def source(kernel, types, constants, aligned=None):
    """Return a kernel with these types; 16 divides the addresses of all pointers if not said."""
    from triton.compiler import ASTSource

    names = kernel.arg_names
    if aligned is None:
        aligned = [name for name, kind in types.items() if kind.startswith("*")]
    return ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


@needs_triton
def test_interpreted_they_do_what_torchs_operations_do():
    # Derivatives are taken of layers only: a gradcheck calls a function too many times.
    files = ("tests/nn/interpreted.py", "tests/nn/test_frequencies.py")
    run_interpreted(*files, "-k", "not second_derivatives")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_modrelu_of_more_entries_than_32_bits_count_is_refused(dtype):
    from geoopt_projunn.nn.kernels import modrelu

    n = 2**15
    step = torch.empty(2**15, n, dtype=dtype, device="meta")
    programs, (stride, count, columns) = modrelu._share(step)
    assert (programs, stride, count, columns) == (2**22, n, 2**30, n)
    words = r"`input` must be a batch .* at most 1073741824 .*, got 32769 rows that are 32768 ent.*"
    one_more = torch.empty(2**15 + 1, n, dtype=dtype, device="meta")
    with pytest.raises(ValueError, match=words + "split the batch"):
        modrelu._share(one_more)
    # Rows of the states of all steps, of a batch that comes first.
    apart = torch.empty(2**15, 2 * n, dtype=dtype, device="meta")[:, :n]
    with pytest.raises(ValueError, match="got 32768 rows that are 65536 entries apart"):
        modrelu._share(step, apart)
