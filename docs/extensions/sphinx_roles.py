"""Show docstrings that are written with Sphinx roles, as geoopt's are, in Markdown."""

import re
from typing import Any

import griffe

_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_DISPLAY_MATH = re.compile(r"\.\. math::\n\n((?:[ \t]+.*(?:\n|$)|\n)+)")
_ONE_LINE_MATH = re.compile(r"\.\. math:: +(\S.*(?:\n[ \t]+\S.*)*)")
_RAISED = re.compile(r"(?:\\ )?:sup:`([^`]+)`")
_REFERENCE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")
# Several arguments with one description: "a, b : type", or without a type.
_TOGETHER = re.compile(r"^(\w+(?:, \w+)+)((?: : .*)?\n(?:[ \t]+\S.*(?:\n|$))+)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Replace mathematics and references by what Markdown knows; take arguments apart.

    Of arguments that are described together all would be shown with the default of the first.
    """
    text = _TOGETHER.sub(lambda m: _apart(m[1].split(", "), m[2]), text)
    text = _DISPLAY_MATH.sub(lambda m: f"$$\n{_dedent(m[1])}\n$$\n\n", text)
    text = _ONE_LINE_MATH.sub(lambda m: f"$$\n{_dedent(m[1])}\n$$", text)
    text = _RAISED.sub(lambda m: f"<sup>{m[1]}</sup>", text)
    text = _INLINE_MATH.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    return _REFERENCE.sub(lambda m: f"`{m[1].rsplit('.', 1)[-1]}`", text)


def _apart(names: list[str], described: str) -> str:
    # The last line of a docstring does not end.
    end = described if described.endswith("\n") else described + "\n"
    return "".join(name + end for name in names)


def _dedent(block: str) -> str:
    return " ".join(line.strip() for line in block.splitlines() if line.strip())


class SphinxRoles(griffe.Extension):
    """Translate every docstring once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
