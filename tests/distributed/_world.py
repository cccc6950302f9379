"""Four processes that form a group, and run what tests ask of them."""

import datetime
import importlib
import multiprocessing
import traceback
from multiprocessing.connection import wait

SIZE = 4
_SECONDS = 60


class World:
    """Processes that wait for functions of test modules, by name, and return what they give.

    What they give is sent, so it should be numbers and text.
    """

    def __init__(self, folder):
        self._folder, self._started = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        # Imported once, in the process that the others are forked from.
        self._context.set_forkserver_preload(["tests.distributed._world", "geoopt_projunn"])
        self._processes, self._pipes = [], []

    def run(self, function, *args, dies=None):
        """Return what a function gives for each rank; raise what it raises.

        If it ends the process of one rank, the others answer, and are ended as well.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__name__, args))
        try:
            answers = [self._answer(p) for rank, p in enumerate(self._pipes) if rank != dies]
        except BaseException:
            self.stop()
            raise
        if dies is not None:
            self.stop()
        return answers

    def _start(self):
        self._started += 1
        store = str(self._folder / f"store{self._started}")
        for rank in range(SIZE):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _answer(self, pipe):
        if not wait([pipe], timeout=2 * _SECONDS):
            raise TimeoutError("A process did not answer.")
        fine, value = pipe.recv()
        if not fine:
            raise AssertionError(f"In a process of the group:\n{value}")
        return value

    def stop(self):
        """End the processes; the next function starts others."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank, store, pipe):
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=SIZE,
        timeout=datetime.timedelta(seconds=_SECONDS),
    )
    while True:
        module, name, args = pipe.recv()
        try:
            torch.manual_seed(0)
            value = getattr(importlib.import_module(module), name)(*args)
            pipe.send((True, value))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
