"""Data parallelism that averages the products which a step needs, and not whole gradients."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import distributed

from ..backends.distributed import average_gradients_of, is_dtensor
from ..low_rank_manifold import low_rank_manifold_of
from ..optim.spread import LINEAR_SKETCHES

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["sketch_gradients_"]


def sketch_gradients_(
    params: Iterable[torch.Tensor] | torch.Tensor, group: "ProcessGroup | None" = None
) -> None:
    r"""Average products with gradients over processes, instead of the gradients themselves.

    A step needs the gradient only in products with a few vectors. For the mean of gradients,
    :math:`\bar D = \frac1P \sum_i D_i`, these are the means of the products with each
    :math:`D_i`: :math:`8kn` numbers for a matrix of size n with the sketch "tangent", :math:`2kn`
    with "lsi", instead of :math:`n^2`. The step equals that of the mean gradient, to rounding.

    Call it before the first step on each process, with replicas of the same parameters in the same
    order: processes identify parameters by their place in this order. The optimizer must have them
    in one order on all processes, too. The first step, and the first one after
    ``load_state_dict``, gives all processes the values of the group's first process.

    Parameters
    ----------
    params : torch.Tensor or iterable of torch.Tensor
        Parameters on :class:`~geoopt_projunn.LowRankUnitary` or
        :class:`~geoopt_projunn.LowRankStiefel`, with a finite k and the sketch "tangent" or "lsi".
        Nobody else may average their gradients: tell DistributedDataParallel to ignore them, see
        Examples.
    group : ProcessGroup, optional
        the processes; all of them if not given

    Raises
    ------
    TypeError
        If a parameter is on neither manifold, or is a DTensor, whose gradient is averaged by the
        function that has distributed it.
    ValueError
        If its rank or its sketch needs the gradient itself, or this process is not in the group.
    RuntimeError
        If there is no process group. Later, in steps and in ``state_dict()``, if processes do not
        have the same parameters, see Notes.

    Notes
    -----
    This marks the parameters; the step of the optimizer does the rest. It must be a
    :class:`~geoopt_projunn.ProjUNNRiemannianSGD`, with any ambient momentum or error feedback.
    :class:`~geoopt_projunn.ProjUNNRiemannianAdam` raises an error, because its moments are not
    linear in the gradient. Mark parameters again that were replaced, copied or pickled.

    - Each process keeps a buffer of its own gradients; the step uses the mean of the buffers. The
      optimizer's ``state_dict()`` averages them, :math:`n^2` numbers each: every process must call
      it, even if only one of them saves.
    - A gradient that is not finite on one process makes all of them skip the step.
    - All processes must have gradients of the same parameters in a step. If a batch did not reach
      a parameter, set ``p.grad = torch.zeros_like(p)``. In each step the processes exchange two
      numbers that show whether they agree: on the numbers of the parameters,
      their names if the optimizer was made of ``named_parameters()``, shapes, dtypes and manifolds,
      the options of their groups except for the learning rate, the names of their state, and
      whether this is their first step.

      If they do not agree, a step on a CPU raises RuntimeError on every process, names the
      parameters, and changes nothing. The same happens if one process finds an error of its own
      before it steps. On a GPU the host waits for the answer only at the first step of a parameter,
      and raises. Later the steps of all parameters in ``group`` are skipped on all processes,
      counted in ``skipped_steps``, with the warning of a skipped step. If one process then has
      fewer such parameters than another, or an error, the exchanges do not fit together: processes
      wait until the time-out of the process group, or fail.
    - Every process must take every step, even without gradients of these parameters. If one takes
      none, the others wait until the time-out.
    - So it does not work with ``torch.amp.GradScaler``, which leaves out the step of a process
      whose own gradient overflows, nor with ``DistributedDataParallel.join()``.
    - It does not work with ``ZeroRedundancyOptimizer``, where only one process steps a parameter.
    - Gradients may be accumulated over several backward passes. Clip only those of unmarked
      parameters: each process knows only its own gradient of a marked one, and a norm that includes
      it would scale the others differently on each process.
    - DistributedDataParallel finds parameters to ignore only inside of submodules of what it gets.

    Examples
    --------
    ::

        names = [n for n, p in model.named_parameters() if p is model.rnn.weight_hh_l0]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        sketch_gradients_(model.rnn.weight_hh_l0)
        replica = DistributedDataParallel(model)
    """
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    for i, p in enumerate(params):
        _check(f"params[{i}]", p)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "`sketch_gradients_` needs a process group, and there is none; call "
            "`torch.distributed.init_process_group` first."
        )
    chosen = distributed.group.WORLD if group is None else group
    assert chosen is not None
    if distributed.get_rank(chosen) < 0:
        raise ValueError(
            f"`group` must be one that this process is in, got one without process "
            f"{distributed.get_rank()}; call `sketch_gradients_` only on the processes of the "
            "group."
        )
    for p in params:
        average_gradients_of(p, chosen)


def _check(name: str, p: torch.Tensor) -> None:
    if not isinstance(p, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a parameter, got {type(p).__name__}; pass parameters themselves, "
            "without names."
        )
    if is_dtensor(p):
        raise TypeError(
            f"`{name}` must be whole on every process, got a DTensor; leave it out, because "
            "the function that distributed it averages its gradient."
        )
    manifold = low_rank_manifold_of(p)
    if manifold is None:
        raise TypeError(
            f"`{name}` must be on LowRankUnitary or LowRankStiefel, got a {type(p).__name__} of "
            f"shape {tuple(p.shape)} that is not; leave its gradient to DistributedDataParallel."
        )
    if manifold.rank(p) is None or manifold.sketch not in LINEAR_SKETCHES:
        known = " or ".join(repr(sketch) for sketch in LINEAR_SKETCHES)
        raise ValueError(
            f"`{name}` must have a finite k and the sketch {known}, which are linear in the "
            f"gradient, got {manifold}; leave it out, and let DistributedDataParallel average "
            "its gradient."
        )
