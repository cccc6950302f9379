"""The kernels as operators of torch: shapes, flops, refusals."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import backends

from ._cases import draw

if "cpu" not in backends.available():
    pytest.skip("the kernels were not built", allow_module_level=True)

from geoopt_projunn.backends.cpu import operators, steps

pytestmark = pytest.mark.usefixtures("without_gradients")
LENGTH = 0.01
STATE = {"gradient": 0, "momentum": 1, "adam": 2, "amsgrad": 3}
NUMBERS = {"gradient": [], "momentum": [0.9, 0.1, 1.0]}


def step_arguments(rule="gradient", b=3, n=6, k=1, sketch="tangent", p=None):
    x, grad, counter = draw(n, torch.float32, b, p)
    state = [torch.rand(x.shape) for _ in range(STATE[rule])]
    return {
        "x": [x],
        "grad": [grad],
        "state": state,
        "step": [counter.clone()],
        "skipped": [torch.zeros(b)],
        "rule": rule.replace("amsgrad", "adam"),
        "numbers": NUMBERS.get(rule, [0.9, 0.99, 1e-8]),
        "k": k,
        "sketch": sketch,
        "retraction": "exponential",
        "length": LENGTH,
        "sweep": 1,
        "normalize": "angle",
    }


@pytest.mark.parametrize("rule", STATE)
@pytest.mark.parametrize(("b", "p"), [(0, 6), (1, 6), (2, 4)])
def test_steps_are_operators_as_torch_wants_them(b, p, rule):
    torch.library.opcheck(steps.step_, tuple(step_arguments(rule, b, p=p).values()))


@pytest.mark.parametrize(("b", "p"), [(0, 6), (2, 6), (2, 3)])
def test_so_are_the_parts_of_a_step(b, p):
    x, d, counter = draw(6, torch.complex64, b, p)
    rows, core = operators.sketch(x, d, 2, counter, "lsi")
    delta = operators.retract(core, "polar")
    rows, active = rows.to(x.dtype), torch.ones(b, dtype=torch.bool)
    for operator, arguments in (
        (operators.sketch, (x, d, 2, counter, "tangent")),
        (operators.retract, (core, "cayley")),
        (operators.turn_, (x, rows, delta, 1, counter, active)),
        (operators.both_sides, (rows, rows[:, :1, :p].contiguous(), x)),
        (operators.add_product_, (x, rows, rows[..., :p].contiguous())),
    ):
        torch.library.opcheck(operator, arguments)


def flops(operator, *arguments):
    with FlopCounterMode(display=False) as counter:
        operator(*arguments)
    return counter.get_total_flops()


def test_flops_are_counted():
    x, d, counter = draw(24, torch.float32)
    entries = 3 * 24 * 24
    rows, core = operators.sketch(x, d, 4, counter, "tangent")
    active = torch.ones(3, dtype=torch.bool)
    delta, rows = operators.retract(core, "exponential"), rows.float()
    assert flops(operators.sketch, x, d, 4, counter, "tangent") == 16 * 4 * entries
    assert flops(operators.sketch, x, d, 4, counter, "lsi") == 6 * 4 * entries
    assert flops(operators.turn_, x, rows, delta, 2, counter, active) == 4 * (8 + 2) * entries
    assert flops(operators.both_sides, rows, rows, x) == 4 * 8 * entries
    assert flops(operators.add_product_, x, rows, rows) == 2 * 8 * entries
    assert flops(operators.retract, core, "exponential") == 38 * 8**3 * 3
    for sketch, of_sketch in (("tangent", 14), ("lsi", 6), ("column", 4)):
        arguments = step_arguments(n=24, k=4, sketch=sketch).values()
        assert flops(steps.step_, *arguments) == (of_sketch * 4 + 4 * (8 + 1)) * entries


def test_nothing_runs_without_data():
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = step_arguments()
        arguments["x"] = [torch.zeros(3, 6, 6)]
        steps.step_(*arguments.values())
    on_meta = step_arguments()
    on_meta["step"] = [torch.zeros(3, dtype=torch.int64, device="meta")]
    with pytest.raises(RuntimeError, match="must be on one device"):
        steps.step_(*on_meta.values())


NOT_WHOLE = r"\(3, 6, 6\).* got .*\(3, 1, 1\)"
NOT_SCALAR = r"\(3, 1, 1\).* got .*\(3, 6, 6\)"
EVERY_OTHER = r"must be contiguous, .* strides \(72, 12, 2\)"
BY_COLUMNS = r"must be contiguous, .* strides \(36, 1, 6\)"
WRONG = [
    ("gradient", "x", lambda x: [x[0], x[1], x[2].mT], r"one shape, strides.*\(1, 6\)"),
    ("gradient", "x", lambda x: [x[0], x[1].double(), x[2]], r"float32, .*, .*float64"),
    ("gradient", "x", lambda x: [x[0], x[1, :5], x[2]], r"\(6, 6\).*\(5, 6\)"),
    (
        "gradient",
        "x",
        lambda x: [x[0, :5]],
        r"must have as many rows as columns or more, got 5 x 6",
    ),
    ("gradient", "x", lambda x: [torch.cat((x, x), -1)[..., ::2]], EVERY_OTHER),
    ("gradient", "grad", lambda g: [torch.cat((g, g), -1)[..., ::2]], EVERY_OTHER),
    ("gradient", "grad", lambda g: [*g[:2]], r"must be of 3 matrices, got 2"),
    ("gradient", "grad", lambda g: [g[:, :5]], r"\(3, 6, 6\).* got shape \(3, 5, 6\)"),
    ("gradient", "grad", lambda g: [g.double()], r"float32, got .*float64"),
    ("gradient", "step", lambda s: [s.int()], r"int64, got .*int32"),
    ("gradient", "step", lambda s: [s[:2]], r"\(3,\) .* got shape \(2,\)"),
    ("gradient", "step", lambda s: [s, s], r"must be of 3 matrices, got 2 tensors"),
    ("gradient", "skipped", lambda s: [s.double()], r"float32, got .*float64"),
    ("momentum", "grad", lambda g: [g.mT.contiguous().mT], r"must be stored by rows"),
    ("momentum", "state", lambda s: [s.mT], BY_COLUMNS),
    ("amsgrad", "state", lambda s: [s, s.double(), s], r"got .*float64"),
    ("amsgrad", "state", lambda s: [s, s, s[:, :1]], r"got shape \(3, 1, 6\)"),
    ("gradient", "state", lambda s: [torch.zeros(3, 6, 6)], r"0 buffers of 1 .* got 1 tensors"),
    ("momentum", "state", lambda s: [], r"1 buffers of 1 .* got 0 tensors"),
    ("momentum", "numbers", lambda _: [], r"must be 3 for 'momentum', got 0"),
    ("adam", "state", lambda s: [], r"2 or 3 buffers of 1 .* got 0 tensors"),
    ("adam", "state", lambda s: [s] * 4, r"2 or 3 buffers of 1 .* got 4 tensors"),
    (
        "amsgrad",
        "state",
        lambda s: [s, s[:, :1, :1].clone(), s],
        r"\(3, 1, 1\).* got .*\(3, 6, 6\)",
    ),
    (
        "amsgrad",
        "state",
        lambda s: [s, s, s[:, :1, :1].clone()],
        r"\(3, 6, 6\).* got .*\(3, 1, 1\)",
    ),
    ("adam", "state", lambda s: [s[:, :1, :1].clone(), s], NOT_WHOLE),
    ("gradient", "k", lambda _: 0, r"must be between 1 and min\(p, n // 2\) = 3, got 0"),
    ("gradient", "k", lambda _: 4, r"must be between 1 and .* got 4"),
    ("gradient", "sketch", lambda _: "none", r"one of .*'lsi'.*, got 'none'"),
    ("gradient", "retraction", lambda _: "none", r"one of .*'polar'.*, got 'none'"),
    ("gradient", "rule", lambda _: "none", r"one of .*'adam'.*, got 'none'"),
    ("gradient", "normalize", lambda _: "both", r"one of .*'angle'.*, got 'both'"),
    ("gradient", "sweep", lambda _: -1, r"must be between 0 and p = 6, got -1"),
]


@pytest.fixture(params=["in C", "by attributes"])
def _read(request, monkeypatch):
    """Tensors are read through DLPack in C where torch offers it, and by their attributes."""
    if request.param == "by attributes":
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)


@pytest.mark.usefixtures("_read")
@pytest.mark.parametrize(("rule", "name", "spoil", "message"), WRONG)
def test_what_does_not_fit_is_refused_before_anything_changes(rule, name, spoil, message):
    arguments = step_arguments(rule)
    tensors = [t for value in arguments.values() if isinstance(value, list) for t in value]
    before = [t.clone() for t in tensors if isinstance(t, torch.Tensor)]
    old = arguments[name]
    wrong = spoil(old[0]) if isinstance(old, list) and old else spoil(old)
    with pytest.raises(ValueError, match=f"`{name}` .*{message}"):
        steps.step_(**{**arguments, name: wrong})
    for t, value in zip((t for t in tensors if isinstance(t, torch.Tensor)), before, strict=True):
        assert torch.equal(t, value)


@pytest.mark.parametrize("rule", STATE)
def test_tensors_are_the_same_however_they_are_read(rule, monkeypatch):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        arguments = step_arguments(rule, n=9, k=2, p=5)
        x = arguments["x"][0]
        # The second half of a larger tensor that is stored by columns.
        arguments["x"] = [torch.cat((x, x)).mT.contiguous().mT[3:]]
        steps.step_(*arguments.values())
        results.append(
            [t for value in arguments.values() if isinstance(value, list) for t in value]
        )
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    for one, other in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert not torch.equal(results[0][0], x)


class Nothing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Own(torch.Tensor):
    """A kind of tensors that is told of operations on it."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with no_dispatch():
            return function(*args, **(kwargs or {}))


def negated(t):
    """The same values, negated lazily."""
    lazy = torch._neg_view(-t)
    assert lazy.is_neg()
    return lazy


@pytest.fixture
def dispatched(monkeypatch):
    """Return what is handed to torch's dispatcher."""
    found, operator = [], steps.step_

    def noted(*arguments):
        found.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(steps, "step_", noted)
    return found


@pytest.mark.usefixtures("_read")
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # of torch 2.11
@pytest.mark.parametrize("needs", ["nothing", "mode", "profiler", "negated", "own", "tuple"])
def test_torchs_dispatcher_is_asked_where_something_needs_it(needs, dispatched):
    def step(spoil=None, context=None):
        torch.manual_seed(0)
        given = list(step_arguments("momentum", n=9, p=5).values())
        lists, options = given[:5], tuple(given[5:])
        if spoil is not None:
            lists[1] = spoil(lists[1])
        with context or contextlib.nullcontext():
            steps.take(tuple(lists), options)
        return lists[0][0]

    expected = step()
    assert not dispatched
    spoilt = {
        "negated": lambda grads: [negated(t) for t in grads],
        "own": lambda grads: [t.as_subclass(Own) for t in grads],
        "tuple": tuple,
    }
    contexts = {"mode": Nothing(), "profiler": torch.profiler.profile()}
    found = step(spoilt.get(needs), contexts.get(needs))
    assert len(dispatched) == (needs != "nothing")
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("_read")
@pytest.mark.parametrize("place", range(5))
def test_memory_of_another_device_is_not_touched(place, dispatched):
    given = list(step_arguments("momentum").values())
    lists, options = given[:5], tuple(given[5:])
    lists[place] = [t.to("meta") for t in lists[place]]
    with pytest.raises(RuntimeError, match="All tensors of a step must be on one device"):
        steps.take(tuple(lists), options)
    assert len(dispatched) == 1


def test_what_is_to_be_changed_and_conjugated_lazily_goes_to_the_dispatcher(dispatched):
    given = list(step_arguments("momentum").values())
    lists, options = given[:5], tuple(given[5:])
    for i in range(3):
        lists[i] = [t.to(torch.complex64) for t in lists[i]]
    lists[2] = [t.conj() for t in lists[2]]
    before = [t.clone() for some in lists for t in some]
    with pytest.raises(RuntimeError):
        steps.take(tuple(lists), options)
    assert len(dispatched) == 1
    for t, value in zip((t for some in lists for t in some), before, strict=True):
        assert torch.equal(t, value)


def test_an_entry_is_rounded_once_however_many_terms_are_added():
    """Terms that cancel leave the entry as it was, bit for bit."""
    x = 1e6 * torch.randn(1, 19, 23)
    rows = torch.randn(1, 16, 19)
    factor = torch.randn(1, 16, 23)
    before = x.clone()
    both = torch.cat((rows, -rows), 1), torch.cat((factor, factor), 1)
    operators.add_product_(x, *both)
    assert (x - before).abs().max() <= 1e-5 * rows.abs().max() * factor.abs().max() * 16
