"""Steps of parameters that lie on several processes, or whose gradients do."""

from .backend import Distributed
from .collectives import digest, mean_over
from .gathered import reshard_all
from .layout import (
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
from .peers import Peers, agreed_by_all, may_have_peers, peers_of_group, peers_of_mesh

__all__ = [
    "Distributed",
    "Peers",
    "agreed_by_all",
    "any_is_marked",
    "average_gradients_of",
    "averages_gradients",
    "digest",
    "from_part",
    "gives_values",
    "is_dtensor",
    "is_spread",
    "like_its_parameter",
    "local_of",
    "may_have_peers",
    "mean_over",
    "misplacement",
    "number_of",
    "peers_of_group",
    "peers_of_mesh",
    "place_like",
    "placements_of_batch",
    "receive_first",
    "reshard_all",
    "whole_of",
]
