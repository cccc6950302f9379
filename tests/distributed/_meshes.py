"""Ways to place a matrix on some of the processes."""

import hashlib

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

PLACINGS = {
    "rows of 2": ((2,), [Shard(0)]),
    "rows of 3": ((3,), [Shard(0)]),
    "rows of 4": ((4,), [Shard(0)]),
    "columns of 3": ((3,), [Shard(1)]),
    "columns of 4": ((4,), [Shard(1)]),
    "copies": ((4,), [Replicate()]),
    "copies of rows": ((2, 2), [Replicate(), Shard(0)]),
    "tiles": ((2, 2), [Shard(0), Shard(1)]),
}
_meshes = {}


def mesh_of(shape):
    """Return a mesh of the first processes, or None if this one is not among them."""
    if shape not in _meshes:
        # Made by all processes, and once: each has groups of its own.
        if shape in ((2,), (3,)):
            _meshes[shape] = DeviceMesh("cpu", list(range(shape[0])))
        else:
            names = ("copies", "parts")[-len(shape) :]
            _meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=names)
    return _meshes[shape] if _meshes[shape].get_coordinate() is not None else None


def placed(x, placing):
    """Return a matrix, the same on all processes, as a DTensor; None where it has no part."""
    shape, placements = PLACINGS[placing]
    mesh = mesh_of(shape)
    return None if mesh is None else distribute_tensor(x, mesh, placements)


def local(t):
    return t.to_local() if isinstance(t, DTensor) else t


def is_first():
    return distributed.get_rank() == 0


def digest(*tensors):
    """Return a number that tells whether tensors have the same bits."""
    bits = hashlib.sha256()
    for t in tensors:
        bits.update(t.detach().resolve_conj().contiguous().numpy().tobytes())
    return bits.hexdigest()
