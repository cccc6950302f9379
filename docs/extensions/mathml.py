"""Turn mathematics into MathML when the pages are built: readers need no script, no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_SPAN = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DIV = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_TWO_NAMES = re.compile(r"\\operatorname\{(\w+) (\w+)\}")


def on_post_page(output: str, **_: Any) -> str:
    """Replace every formula of a finished page."""
    output = _SPAN.sub(lambda match: _mathml(match[1], "inline"), output)
    return _DIV.sub(lambda match: _mathml(match[1], "block"), output)


def _mathml(latex: str, display: str) -> str:
    # latex2mathml knows neither lVert nor tfrac, and drops the space in names like "Re tr".
    latex = _TWO_NAMES.sub(r"\\operatorname{\1}\\operatorname{\2}", html.unescape(latex))
    latex = latex.replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    return convert(latex.replace(r"\tfrac", r"\frac").strip(), display=display)
