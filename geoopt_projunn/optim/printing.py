"""What an optimizer prints as."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch

from .kinds import manifold_of

# Names in a line, of the parameters on one manifold.
_MOST = 6


def printed(name: str, groups: list[dict[str, Any]], defaults: Mapping[str, Any]) -> str:
    """Return the options that differ from their defaults, and which parameters are on what."""
    lines = [f"{name}("]
    for number, group in enumerate(groups):
        options = [
            f"{option}={group[option]}"
            for option, default in defaults.items()
            if option in group and (option == "lr" or group[option] != default)
        ]
        lines.append(f"  group {number}: {', '.join(options)}")
        lines += [f"    {what}" for what in _parameters(group)]
    return "\n".join([*lines, ")"])


def _parameters(group: dict[str, Any]) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    plain: list[torch.Tensor] = []
    for p, name in zip_longest(group["params"], group.get("param_names", ())):
        manifold = manifold_of(p)
        if manifold is None:
            plain.append(p)
            continue
        # geoopt ends it by this word.
        kind = repr(manifold).removesuffix(" manifold")
        size = "×".join(map(str, p.shape))
        kinds.setdefault(kind, []).append(size if name is None else f"{name} {size}")
    for kind, names in kinds.items():
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        yield f"on {kind}: {', '.join(names[:_MOST])}{more}"
    if plain:
        count = "1 parameter" if len(plain) == 1 else f"{len(plain)} parameters"
        yield f"plain: {count}, {sum(p.numel() for p in plain)} numbers"
