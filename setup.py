"""Build the optional extension; all else is in pyproject.toml."""

import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

# The compilers of other systems have no OpenMP by default; without it the extension serves one
# thread, and torch's own products more.
openmp = ["-fopenmp"] if sys.platform == "linux" else []
# One build for all later versions of Python, but for those without its lock.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "geoopt_projunn.backends.cpu._kernels",
            ["geoopt_projunn/backends/cpu/csrc/module.cpp"],
            depends=sorted(glob("geoopt_projunn/backends/cpu/csrc/*.h")),
            # -Wno-psabi: vectors are passed between inlined functions only.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-g0",
                "-Wno-psabi",
                *openmp,
            ],
            extra_link_args=openmp,
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if limited else [],
            py_limited_api=limited,
            # Without a compiler the package is installed without it.
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
