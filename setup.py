"""Build the optional extensions; all else is in pyproject.toml."""

import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

# The compilers of other systems have no OpenMP by default; without it the extension serves one
# thread, and torch's own products more.
openmp = ["-fopenmp"] if sys.platform == "linux" else []
# One build for all later versions of Python, but for those without its lock.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

# -Wno-psabi: vectors are passed between inlined functions only.
numerical = ["-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", *openmp]


def extension(
    backend: str, module: str, source: str, more: list[str], link: list[str]
) -> Extension:
    """Return an extension of a backend; without a compiler the package is installed without it."""
    folder = f"geoopt_projunn/backends/{backend}/csrc"
    return Extension(
        f"geoopt_projunn.backends.{backend}.{module}",
        [f"{folder}/{source}"],
        depends=sorted(glob(f"{folder}/*.h")),
        extra_compile_args=["-std=c++17", "-O3", "-g0", *more],
        extra_link_args=link,
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if limited else [],
        py_limited_api=limited,
        optional=True,
    )


setup(
    ext_modules=[
        extension("cpu", "_kernels", "module.cpp", numerical, openmp),
        extension("triton", "_launches", "launches.cpp", [], []),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
