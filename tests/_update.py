"""The update benchmark's scripts, its methods, and results made up."""

import pytest

from tests._benchmarks import load

memory = load("memory")
timing = load("timing")
update_problem = load("update_problem")
update_methods = load("update_methods")
update_peers = load("update_peers")
update_report = load("update_report")
update_figure = load("update_figure")
update_extras = load("update_extras")
update = load("update")
METHODS = [*update_methods.methods("cpu"), *update_peers.peers()]
(COPY,) = (method for method in METHODS if method.name == update_methods.COPY)
OPTIONAL = {"pogo-torch", "cdopt"}
STEPPED = [method for method in METHODS if method.kind != "floor"]


def built(method, problem):
    try:
        return method.build(problem)
    except ModuleNotFoundError:
        assert method.package in OPTIONAL
        pytest.skip(f"{method.package} is not installed")


def result(method="SGD, k = 1", n=32, times=(1.0,), passes=None, of_pass=(1.0,), threads=1):
    return update_report.Result(
        method, "ours", n, threads, list(times), passes, list(of_pass), bytes_of_pass=4 * n**2
    )
