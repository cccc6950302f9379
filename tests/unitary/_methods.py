"""Every method that takes points and vectors, and arguments for it."""

import torch

from tests._matrices import unitary

METHODS = {
    "projx": lambda m, x, y, u, v: m.projx(y * 1.5),
    "projx of a point": lambda m, x, y, u, v: m.projx(x),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: m.retr_transp(x, u, v),
    "expmap_transp": lambda m, x, y, u, v: m.expmap_transp(x, u, v),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "dist": lambda m, x, y, u, v: m.dist(x, y),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v),
    "norm": lambda m, x, y, u, v: m.norm(x, u),
}
"""Methods with whatever they return."""

LOW_RANK = ("egrad2rgrad", "retr", "retr_transp", "transp_follow_retr")


def arguments(*batch, n=6, dtype=torch.float32):
    x, y = unitary(2, *batch, n, n, dtype=dtype)
    u, v = torch.randn(2, *batch, n, n, dtype=dtype)
    return x, y, u, v


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


BROADCAST = {
    "projx": lambda m, x, y, u, v: m.projx(x + 0.1 * u),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: torch.cat(m.retr_transp(x, u, v), -1),
    "expmap_transp": lambda m, x, y, u, v: torch.cat(m.expmap_transp(x, u, v), -1),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "dist": lambda m, x, y, u, v: m.dist(x, y, keepdim=True),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y, keepdim=True),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v, keepdim=True),
    "component_inner": lambda m, x, y, u, v: m.component_inner(x, u, v),
    "norm": lambda m, x, y, u, v: m.norm(x, u, keepdim=True),
}
"""Methods with one result, which has the matrices of the batch in its last two dimensions."""
