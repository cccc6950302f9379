"""Steps of parameters that lie on several processes, or whose gradients do."""

from .backend import Distributed
from .layout import (
    agreed_by_all,
    average_gradients_of,
    average_over_processes,
    averages_gradients,
    is_dtensor,
    is_spread,
    like_its_parameter,
    local_of,
    misplacement,
    place_like,
    receive_first,
    whole_of,
)

__all__ = [
    "Distributed",
    "agreed_by_all",
    "average_gradients_of",
    "average_over_processes",
    "averages_gradients",
    "is_dtensor",
    "is_spread",
    "like_its_parameter",
    "local_of",
    "misplacement",
    "place_like",
    "receive_first",
    "whole_of",
]
