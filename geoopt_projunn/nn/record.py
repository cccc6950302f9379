"""Which parameters of a module belong on which manifold, by name."""

import copy
import weakref
from collections.abc import ItemsView, Iterator, MutableMapping
from typing import Any

import geoopt
import torch
from geoopt.manifolds.base import Manifold

from ..backends.distributed import is_dtensor
from .placing import assert_kind, assert_whole, dtype_misfit, is_plain, misfit, put_on, take_off


class Record(dict[str, Any]):
    """Takes the place of ``module._parameters`` and puts parameters back on their manifolds.

    A name belongs on the manifold of the last ManifoldParameter that it had, until it is deleted.

    - A parameter that a user sets, or that a load assigns, passes through
      ``register_parameter``. A hook calls :meth:`admit`, which puts it on the manifold or raises.
    - Conversions, FSDP and functional_call write ``module._parameters[name] = p``. A parameter that
      fits is put on the manifold, also one on geoopt's Euclidean, where a copy is that a library
      has made by the class, ``type(old)(value)``. If the one that it has replaced comes back, as at
      the end of a functional_call, it becomes plain again. One that does not fit is left alone: it
      may be there for one call only. So is one that takes the place of a DTensor, as the whole
      parameter does in FSDP's forward pass, and what comes after it until that DTensor is back,
      such as larger parts for the backward pass. Any other DTensor is there to stay: where one is
      expected it is put on the manifold, elsewhere it is refused.
    - torch.utils.swap_tensors changes a parameter in place, and the dictionary does not see it.
      torch swaps inside loops over :meth:`items`, which therefore looks at each parameter before
      and after the body of the loop.

    Parameters
    ----------
    parameters : dict
        of the module
    owner : str
        class of the module, for error messages
    path : str
        of the module in a larger one, with a dot at its end
    counterpart : str or None
        For modules of this package, whose parameters stay real or complex and never are in half
        precision: the class for the other field, "" if there is none. None for other modules.
    manifolds : dict, optional
        manifolds by name, where the parameters do not tell
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        owner: str,
        path: str = "",
        counterpart: str | None = None,
        manifolds: dict[str, Manifold] | None = None,
    ) -> None:
        super().__init__(parameters)
        self.owner, self.path, self.counterpart = owner, path, counterpart
        self.manifolds: dict[str, Manifold] = dict(manifolds or {})
        # The parameters that a name had before, oldest first: a weak reference to each; the id of
        # its replacement if that is put on a manifold for as long as it is here (no reference,
        # since swap_tensors refuses what has weak ones); and the geoopt.Euclidean that the
        # replacement was on, if it was on one.
        self._history: dict[str, list[tuple[weakref.ref[Any], int | None, Manifold | None]]] = {}
        # Names whose parameter does not fit, but may be there for one call only.
        self._unfit: set[str] = set()
        # Those of them in whose place a DTensor comes back.
        self._gathered: set[str] = set()
        # The id of what register_parameter is about to store: that is what the user has chosen.
        self._admitted: int | None = None
        self.note()

    def __reduce__(self) -> Any:
        state = (dict(self), self.owner, self.path, self.counterpart, self.manifolds)
        return type(self), state

    def __setitem__(self, name: str, p: Any) -> None:
        manifold = self.manifold(name)
        if manifold is not None:
            self._replace(name, p, manifold)
        if self._admitted is not None:
            self._admitted = None
        super().__setitem__(name, p)
        self.manifold(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.manifolds.pop(name, None)
        self._history.pop(name, None)
        self._unfit.discard(name)
        self._gathered.discard(name)

    # Those of dict would not call the two methods above.
    update = MutableMapping.update
    popitem = MutableMapping.popitem
    setdefault = MutableMapping.setdefault
    clear = MutableMapping.clear

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a name and return its parameter, or the default."""
        if name not in self and default:
            (value,) = default
            return value
        value = self[name]
        del self[name]
        return value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def copy(self) -> "Record":
        """Return a record of the same parameters for another module."""
        return copy.copy(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return names and parameters, which stay on their manifolds if a loop swaps them."""
        if not self.manifolds:
            return super().items()
        return _Items(self)

    def manifold(self, name: str) -> Manifold | None:
        """Return the manifold that a name belongs on, None for a plain parameter."""
        p = self.get(name)
        if isinstance(p, geoopt.ManifoldTensor) or is_dtensor(p):
            # The user may have set another manifold on the parameter itself.
            manifold = getattr(p, "manifold", None)
            if isinstance(manifold, Manifold):
                self.manifolds[name] = manifold
        return self.manifolds.get(name)

    def note(self) -> None:
        """Look at all parameters, some of which may have been put on manifolds."""
        for name in self:
            self.manifold(name)

    def restore(self, name: str) -> None:
        """Put a parameter back that torch.utils.swap_tensors has made plain, if it fits."""
        p: Any = self.get(name)
        if name in self.manifolds and is_plain(p) and self.misfit(name, p) is None:
            self.put_back(name, p, self.manifold(name))

    def put_back(self, name: str, p: Any, manifold: Manifold | None) -> None:
        """Put a parameter back that has been swapped, or raise TypeError if it cannot be."""
        if manifold is not None and is_plain(p) and name not in self._unfit:
            assert_kind(self.describe(name), p, manifold, p)
            put_on(p, manifold)

    def restore_all(self) -> None:
        """Put back what a load has swapped, or raise TypeError for what cannot be put back."""
        for name, p, manifold in self.on_manifolds():
            self.put_back(name, p, manifold)

    def detach_loaded(self, state_dict: Any, prefix: str, local_metadata: Any, *_: Any) -> None:
        """Leave the parameters of another module alone that ``assign`` would make our own.

        With ``keep_vars`` a state dict holds parameters. One that would have to change its
        manifold becomes a tensor, of which torch makes a new parameter with the same memory.
        """
        if not local_metadata.get("assign_to_params_buffers", False):
            return
        for name, manifold in self.manifolds.items():
            value = state_dict.get(prefix + name)
            if not isinstance(value, torch.nn.Parameter):
                continue
            if getattr(value, "manifold", None) != manifold:
                state_dict[prefix + name] = value.detach()

    def on_manifolds(self) -> list[tuple[str, Any, Manifold]]:
        """Return names, parameters and manifolds of what belongs on one."""
        self.note()
        kept = [(name, self.get(name), manifold) for name, manifold in self.manifolds.items()]
        return [one for one in kept if one[1] is not None]

    def admit(self, name: str, p: torch.Tensor) -> None:
        """Put a parameter on the manifold of a name for good, or raise.

        Raises
        ------
        TypeError
            If it is a DTensor or of another subclass, or its dtype is not supported.
        ValueError
            If its shape does not fit.
        """
        manifold = self.manifold(name)
        if manifold is not None and is_plain(p):
            error = self.misfit(name, p)
            if error is not None:
                raise error
            put_on(p, manifold)
        self._admitted = id(p)

    def misfit(self, name: str, p: torch.Tensor, path: str | None = None) -> Exception | None:
        """Return the error that says why a tensor cannot have a name that is on a manifold."""
        what = self.describe(name, path)
        old = self.get(name)
        error = misfit(what, p, self.manifolds[name], counterpart=self.counterpart, old=old)
        if error is None and self.counterpart is not None and old is not None:
            fields = old.is_complex(), p.is_complex()
            refusal = dtype_misfit(what, p.dtype, *fields, self.counterpart)
            error = None if refusal is None else TypeError(refusal)
        return error

    def stands_in(self, name: str) -> bool:
        """Return whether a parameter is there only until a DTensor comes back."""
        return name in self._gathered

    def describe(self, name: str, path: str | None = None) -> str:
        """Return what error messages call a parameter, with the path of its module if known."""
        return f"`{self.path if path is None else path}{name}` of {self.owner}"

    def _replace(self, name: str, p: Any, manifold: Manifold) -> None:
        """Put p on the manifold; or, if p was here before, change back what had come for it."""
        old, euclidean = self.get(name), None
        # `id(p)` last: torch.compile cannot trace it.
        if _is_euclidean(p) and not _is_euclidean(old) and id(p) != self._admitted:
            euclidean = p.manifold
            take_off(p)
        stands_in = name in self._gathered and is_dtensor(p)
        if is_plain(p) and not stands_in:
            assert_whole(self.describe(name), p, manifold, old)
        self._unfit.discard(name)
        self._gathered.discard(name)
        if is_dtensor(p) and not is_plain(p):
            return
        if stands_in or (is_dtensor(old) and not is_dtensor(p)):
            self._unfit.add(name)
            self._gathered.add(name)
            return
        history = [entry for entry in self._history.pop(name, ()) if entry[0]() is not None]
        # A list: torch 2.8 compiles no `next` with a default.
        back = [i for i, (earlier, *_) in enumerate(history) if earlier() is p]
        if back:
            _, came, was_on = history[-1]
            if came == id(old):
                take_off(old)
                if was_on is not None:
                    put_on(old, was_on)
            del history[back[0] :]
        else:
            fits = is_plain(p) and self.misfit(name, p) is None
            if fits:
                put_on(p, manifold)
            elif is_plain(p):
                self._unfit.add(name)
            changes = fits or euclidean is not None
            if old is not None and (changes or history):
                history.append((weakref.ref(old), id(p) if changes else None, euclidean))
        if history:
            self._history[name] = history


def _is_euclidean(p: Any) -> bool:
    # torch.compile traces no change of a class.
    return not torch.compiler.is_compiling() and isinstance(
        getattr(p, "manifold", None), geoopt.Euclidean
    )


class _Items(ItemsView[str, Any]):
    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._record = record

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        record, manifolds = self._record, self._record.manifolds
        for name, p in dict.items(record):
            if name not in manifolds:
                yield name, p
                continue
            if not isinstance(p, geoopt.ManifoldTensor):
                record.restore(name)
            manifold = getattr(p, "manifold", None)
            if isinstance(manifold, Manifold):
                manifolds[name] = manifold
            yield name, p
            swapped = manifold is not None and not isinstance(p, geoopt.ManifoldTensor)
            if swapped and record.get(name) is p:
                # The dtype needs no check: `_apply` of our own modules has made one, and other
                # modules may have any dtype.
                record.put_back(name, p, manifold)
