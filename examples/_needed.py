"""What the examples need. What is missing ends them with one sentence that says what to do.

Every example imports this first, before the packages themselves.
"""

from importlib.util import find_spec

# The names of packages on PyPI, and what they import as.
PACKAGES = {
    "torch": "torch",
    "geoopt": "geoopt",
    "geoopt-projunn": "geoopt_projunn",
    "matplotlib": "matplotlib",
    "scikit-learn": "sklearn",
    "tqdm": "tqdm",
}

missing = [package for package, module in PACKAGES.items() if find_spec(module) is None]
if missing:
    raise SystemExit(
        f"The examples need {', '.join(missing)}, not installed here: run "
        "`pip install '.[examples]'` in the clone, or `make demo` and then `.venv/bin/python`."
    )


def help_texts() -> str:
    """Return Python's own help texts, about half a million characters of English."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SystemExit(
            "This Python came without its help texts (pydoc_data): install its whole library, "
            "on Debian by `apt install python3`."
        ) from None
    return "\n".join(topics.values())
