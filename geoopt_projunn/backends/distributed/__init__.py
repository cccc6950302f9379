"""Steps of parameters that lie on several processes, or whose gradients do."""

from .backend import Distributed
from .collectives import are_alike, assert_all_are_here, digest, mean_over, objects_of
from .layout import (
    agreed_by_all,
    from_part,
    is_dtensor,
    is_spread,
    local_of,
    misplacement,
    place_like,
    placements_of_batch,
    whole_of,
)
from .marks import (
    any_is_marked,
    average_gradients_of,
    averages_gradients,
    gives_values,
    like_its_parameter,
    number_of,
    receive_first,
)

__all__ = [
    "Distributed",
    "agreed_by_all",
    "any_is_marked",
    "are_alike",
    "assert_all_are_here",
    "average_gradients_of",
    "averages_gradients",
    "digest",
    "from_part",
    "gives_values",
    "is_dtensor",
    "is_spread",
    "like_its_parameter",
    "local_of",
    "mean_over",
    "misplacement",
    "number_of",
    "objects_of",
    "place_like",
    "placements_of_batch",
    "receive_first",
    "whole_of",
]
