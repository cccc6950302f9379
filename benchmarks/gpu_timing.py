"""Times of functions on a GPU, called by themselves and replayed by a graph."""

from collections.abc import Callable, Iterator

import torch
from timing import timed

Function = Callable[[], object]
Cases = Iterator[tuple[str, Function]]
"""Labels, and functions that return what goes into the report under each, or raise."""

REPEATS = 3
MOST_CALLS = 50
SECONDS = 0.05
"""Of one repeat."""


def milliseconds(function: Function) -> float:
    """Return the least mean time of a call over a few repeats."""
    function()
    first = timed(function)
    calls = max(1, min(MOST_CALLS, int(SECONDS / first)))
    return 1e3 * min(timed(function, calls) for _ in range(REPEATS))


def eager_and_graph(function: Function, device: str) -> dict[str, float]:
    """Return the times of a function called by itself, and replayed by a CUDA graph."""
    found = {"eager": milliseconds(function)}
    if device == "cuda":
        found["graph"] = milliseconds(captured(function))
    return found


def captured(function: Function) -> Function:
    """Return what replays a function from a CUDA graph."""
    # On a stream of its own, as torch's notes on graphs ask for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()

    def replay(kept: Function = function) -> None:
        # The graph works on memory that lives as long as the function.
        graph.replay()

    return replay


def bandwidth(x: torch.Tensor) -> float:
    """Return the bytes per second that a copy of x moves."""
    target = torch.empty_like(x)

    def copy() -> None:
        target.copy_(x)

    # Replayed, on a GPU: at small sizes a launch from the host takes longer than the copy.
    return (
        2
        * x.numel()
        * x.element_size()
        / (min(eager_and_graph(copy, x.device.type).values()) / 1e3)
    )
