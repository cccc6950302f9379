"""How a recurrent layer runs, whatever recurrence its weights are of."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..linalg.modes import is_autocast
from ..linalg.precision import full_precision
from .recurrences.fused import in_full_precision
from .recurrences.order import Order
from .recurrent import Recurrent, taken_as
from .transforms import bound_to, is_exported, needs_torch_operations


class RecurrentLayer(Recurrent, torch.nn.RNNBase):
    """A torch.nn.RNN or torch.nn.GRU with this package's recurrence.

    A subclass names one of these as its last base and says what one direction of one layer does.
    """

    _DIMENSIONS: ClassVar[str]
    """What torch's class says of an input with other dimensions."""
    _fused = False
    """Whether to run the kernels of torch's class."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def _recur(
        self, x: Tensor, h0: Tensor | None, suffix: str, order: Order
    ) -> tuple[Tensor, Tensor]:
        """Run the layer and direction of a suffix; return all states and the last ones."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except (TypeError, ValueError):
            # By then torch.nn.RNNBase has put the value among its flat weights.
            self._init_flat_weights()
            raise

    def flatten_parameters(self) -> None:
        """Do what torch's class does where its kernels are used, nothing elsewhere."""
        if self._fused:
            super().flatten_parameters()

    def _load_from_state_dict(self, *args: Any) -> None:
        # torch.nn.RNNBase keeps weak references to its parameters, and torch.utils.swap_tensors
        # raises for a parameter that has one.
        self._flat_weight_refs = []
        try:
            super()._load_from_state_dict(*args)
        finally:
            self._init_flat_weights()

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        """Run over a batch, a single sequence or a PackedSequence, as torch's class does.

        Parameters
        ----------
        input : torch.Tensor or PackedSequence
            (L, N, input_size), (N, L, input_size) with ``batch_first``, or (L, input_size)
        hx : torch.Tensor, optional
            (num_layers * directions, N, hidden_size), or without N for a single sequence; zero
            if not given

        Returns
        -------
        tuple
            The states of the last layer, in the form of the input, and the last states of all
            layers, in the form of ``hx``.

        Raises
        ------
        ValueError, RuntimeError
            If a dtype or a shape does not fit, as torch's class raises them.
        """
        return (self._call if torch.compiler.is_exporting() else self._call_outside)(input, hx)

    def _call(self, input: Any, hx: Tensor | None) -> Any:
        packed = isinstance(input, PackedSequence)
        fused = self._fused and torch.backends.cudnn.enabled
        if fused and not needs_torch_operations(input.data if packed else input, hx):
            return self._run_fused(input, hx)
        if packed:
            return self._run_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(self._DIMENSIONS.format(input.dim()))
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            raise RuntimeError(
                f"For {'' if batched else 'un'}batched {input.dim()}-D input, hx should also be "
                f"{input.dim()}-D but got {hx.dim()}-D tensor"
            )
        dtype = self.weight_hh_l0.dtype
        x, hx = taken_as(input, dtype), None if hx is None else taken_as(hx, dtype)
        if not batched:
            x = x.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else hx.unsqueeze(1)
        self.check_forward_args(x, hx, None)
        if hx is not None:
            hx = bound_to(hx, self.get_expected_hidden_size(x, None))
        x = x.transpose(0, 1) if self.batch_first else x
        length, batch = x.shape[:2]
        if length == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        outputs, last = self._run(x.flatten(0, 1), hx, [batch] * length)
        outputs = [states.view(length, batch, self.hidden_size) for states in outputs]
        if not batched:
            return _joined([states.squeeze(1) for states in outputs]), last.squeeze(1)
        if self.batch_first:
            outputs = [states.transpose(0, 1) for states in outputs]
        return _joined(outputs), last

    def _run_fused(self, input: Any, hx: Tensor | None) -> Any:
        """Run torch's kernels, in the precision of the parameters as everything here."""
        packed = isinstance(input, PackedSequence)
        dtype = self.weight_hh_l0.dtype
        self._update_flat_weights()

        def call(x: Tensor, h0: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
            # Another thread may be running this layer on weights of its own.
            twin = object.__new__(type(self))
            twin.__dict__.update(self.__dict__)
            twin.__dict__["_flat_weights"] = weights
            twin.__dict__["_flat_weight_refs"] = [None] * len(weights)
            states, last = super(RecurrentLayer, twin).forward(
                input._replace(data=x) if packed else x, h0
            )
            return (states.data if packed else states), last

        states, last = in_full_precision(
            call,
            taken_as(input.data if packed else input, dtype),
            None if hx is None else taken_as(hx, dtype),
            [weight for weight in self._flat_weights if weight is not None],
        )
        return (input._replace(data=states) if packed else states), last

    # torch.compile leaves out a function that calls a torch.nn.RNN or a torch.nn.GRU, but would
    # compile what this calls, the loop over all time steps.
    _call_outside = torch.compiler.disable(_call)

    def _run_packed(self, packed: PackedSequence, hx: Tensor | None) -> Any:
        if is_exported():
            raise RuntimeError(
                "`input` must be a padded tensor in torch.export and torch.jit.trace, got a "
                "PackedSequence: its lengths would become constants of the program."
            )
        dtype = self.weight_hh_l0.dtype
        x = taken_as(packed.data, dtype)
        if hx is not None:
            hx = taken_as(self.permute_hidden(hx, packed.sorted_indices), dtype)
        self.check_forward_args(x, hx, packed.batch_sizes)
        batch_sizes = packed.batch_sizes.tolist()
        if batch_sizes != sorted(batch_sizes, reverse=True):
            raise ValueError(
                f"batch_sizes of a PackedSequence must not increase, got {batch_sizes}. "
                "Make it by pack_padded_sequence or pack_sequence"
            )
        outputs, last = self._run(x, hx, batch_sizes)
        return (
            packed._replace(data=_joined(outputs)),
            self.permute_hidden(last, packed.unsorted_indices),
        )

    @full_precision
    def _run(
        self, x: Tensor, hx: Tensor | None, batch_sizes: list[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Run all layers over rows in packed layout.

        Return the states of the last layer in each direction, and the last states of all layers.
        """
        directions = 2 if self.bidirectional else 1
        outputs: list[Tensor] = []
        lasts: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
                x = _dropout(x, self.dropout, self.training) if self.dropout > 0 else x
            outputs = []
            for direction in range(directions):
                suffix = f"l{layer}" + ("_reverse" if direction else "")
                h0 = None if hx is None else hx[len(lasts)]
                states, last = self._recur(x, h0, suffix, Order(batch_sizes, bool(direction)))
                outputs.append(states)
                lasts.append(last)
        return outputs, torch.stack(lasts)

    def check_forward_args(
        self, input: Tensor, hidden: Tensor | None, batch_sizes: Tensor | None
    ) -> None:
        """Check dtypes and shapes."""
        self.check_input(input, batch_sizes)
        if hidden is None:
            return
        self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))
        if hidden.dtype != input.dtype:
            raise ValueError(
                f"RNN hidden dtype ({hidden.dtype}) does not match weight dtype ({input.dtype}). "
                f"Convert hx: hx.to({input.dtype})"
            )

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Check the input's dtype and shape."""
        if input.is_complex() and not self.is_complex:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) is complex but {type(self).__name__} is real. "
                f"{self._remedy_for_complex_input()}"
            )
        # torch's class looks at a list of weights that torch.func.functional_call leaves stale.
        dtype = self.weight_ih_l0.dtype
        if input.dtype != dtype and not is_autocast():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dimensions = 2 if batch_sizes is not None else 3
        if input.dim() != dimensions:
            raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def extra_repr(self) -> str:
        """Return torch's description, and what is particular to these layers."""
        return super().extra_repr() + self._describe(getattr(self, "weight_hh_l0", None))


def _joined(outputs: list[Tensor]) -> Tensor:
    """Return the states of all directions side by side; users may change them in place."""
    if len(outputs) > 1:
        return torch.cat(outputs, -1)
    states = outputs[0]
    # The backward pass of a recurrence needs its states as they are; a program does not call it.
    return states.clone() if states.requires_grad and not is_exported() else states


def _dropout(x: Tensor, p: float, training: bool) -> Tensor:
    if not (x.is_complex() and training):
        return torch.nn.functional.dropout(x, p, training)
    # Both parts of a complex number go together.
    return x * torch.nn.functional.dropout(torch.ones_like(x.real), p)
