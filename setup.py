"""Build the optional extension; all else is in pyproject.toml."""

import sys

from setuptools import Extension, setup

# The compilers of other systems have no OpenMP by default; without it the extension serves one
# thread, and torch's own products more.
openmp = ["-fopenmp"] if sys.platform == "linux" else []

setup(
    ext_modules=[
        Extension(
            "geoopt_projunn.linalg._streams",
            ["geoopt_projunn/linalg/_streams.cpp"],
            # -Wno-psabi: vectors are passed between inlined functions only.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-ffp-contract=fast",
                "-g0",
                "-Wno-psabi",
                *openmp,
            ],
            extra_link_args=openmp,
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            # Without a compiler the package is installed without it.
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
