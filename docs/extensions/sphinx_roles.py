"""Show docstrings that are written with Sphinx roles, as geoopt's are, in Markdown."""

import re
from typing import Any

import griffe

_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_DISPLAY_MATH = re.compile(r"\.\. math::\n\n((?:[ \t]+.*(?:\n|$)|\n)+)")
_REFERENCE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")


def to_markdown(text: str) -> str:
    """Replace mathematics and references by what Markdown knows."""
    text = _DISPLAY_MATH.sub(lambda m: f"$$\n{_dedent(m[1])}\n$$\n\n", text)
    text = _INLINE_MATH.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    return _REFERENCE.sub(lambda m: f"`{m[1].rsplit('.', 1)[-1]}`", text)


def _dedent(block: str) -> str:
    return " ".join(line.strip() for line in block.splitlines() if line.strip())


class SphinxRoles(griffe.Extension):
    """Translate every docstring once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
