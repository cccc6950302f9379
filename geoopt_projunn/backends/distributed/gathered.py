"""Parameters that FSDP has gathered for a pass through a model."""

import sys
from typing import Any

import torch


def reshard_all(model: torch.nn.Module) -> None:
    """Let each process have its parts again, in place of whole parameters.

    After a forward pass modules that ``fully_shard`` was given, at least the outermost one, keep
    the whole parameters until the backward pass, and after one without gradients for good. Those
    are plain parameters, and to change them changes no part. What comes next gathers anew.
    """
    # If FSDP was never imported, no module uses it.
    fsdp: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for module in model.modules() if fsdp else ():
        if isinstance(module, fsdp):
            module.reshard()
