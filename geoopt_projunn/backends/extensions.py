"""Why parts of the package in C++ are missing, and what to do about it."""

import importlib.util

REMEDY = (
    "Install g++ or clang++, and then this package again, by `pip install --no-cache-dir "
    "--force-reinstall --no-deps .` in a clone."
)


def lack_of(module: str, error: ImportError) -> str:
    """Return why the parts in a module could not be imported."""
    if importlib.util.find_spec(module) is None:
        return "no C++ compiler could build them when the package was installed"
    return f"Python could not load them ({error})"
