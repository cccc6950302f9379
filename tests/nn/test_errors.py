"""Bad input is refused in torch's words, or with the rule, the value and a remedy."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from geoopt_projunn.nn import (
    BlockOrthogonalConv2d,
    ModReLU,
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalLinear,
    OrthogonalRNN,
    OrthogonalRNNCell,
    RealReadout,
    UnitaryRNN,
    UnitaryRNNCell,
)

LAYERS = {OrthogonalRNN: torch.nn.RNN, UnitaryRNN: torch.nn.RNN, OrthogonalGRU: torch.nn.GRU}
CELLS = {
    OrthogonalRNNCell: torch.nn.RNNCell,
    UnitaryRNNCell: torch.nn.RNNCell,
    OrthogonalGRUCell: torch.nn.GRUCell,
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_cell = pytest.mark.parametrize("kind", CELLS)
every_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


def raised(make):
    """Return the type and the words of what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        make()
    return caught.type, str(caught.value)


def raised_by_torch(make):
    """Return the same of torch's own call; older versions refuse less."""
    try:
        make()
    except Exception as error:
        return type(error), str(error)
    return pytest.skip("this torch does not refuse it")


# -- construction ----------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2},
        {"input_size": 0},
        {"hidden_size": -1},
        {"num_layers": 0},
        {"bias": 1},
        {"batch_first": 1},
        {"dropout": 1.5},
        {"dropout": True},
        {"dropout": -0.1},
        {"unheard_of": 1},
    ],
    ids=str,
)
def test_arguments_that_torch_refuses_are_refused_as_torch_does(kind, options):
    options = {"input_size": 3, "hidden_size": 8, **options}
    expected = raised_by_torch(lambda: LAYERS[kind](**options))
    assert raised(lambda: kind(**options)) == expected


@every_layer
def test_dropout_of_one_layer_warns_as_torch_does(kind):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        kind(3, 8, dropout=0.5)


@every_kind
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"nonlinearity": "gelu"},
            ValueError,
            "^`nonlinearity` must be one of 'modrelu', 'relu', 'tanh', got 'gelu'.$",
        ),
        (
            {"init": "xavier"},
            ValueError,
            "^`init` must be one of 'henaff', 'cayley', 'identity', 'haar', got 'xavier'.$",
        ),
        ({"k": 5}, ValueError, r"`k` must satisfy 1 <= k <= n // 2 = 4, got 5; use k=None"),
        ({"k": 1.0}, TypeError, "`k` must be an integer, got 1.0"),
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"retraction": "qr"}, ValueError, "`retraction` must be one of 'exponential'.* got 'qr'"),
        ({"sketch": "svd"}, ValueError, "`sketch` must be one of 'tangent'.* got 'svd'"),
        ({"dtype": torch.bfloat16}, TypeError, "`dtype` of .* must be .*, got torch.bfloat16"),
        ({"dtype": torch.int64}, TypeError, "`dtype` of .* must be .*, got torch.int64"),
    ],
    ids=str,
)
def test_arguments_that_torch_does_not_know(kind, options, error, words):
    with pytest.raises(error, match=words):
        kind(3, 8, **options)


OF_ANOTHER = "call `orthogonalize_` for a complex weight of another"


@pytest.mark.parametrize(
    ("kind", "dtype", "remedy"),
    [
        (OrthogonalRNN, torch.complex64, "use UnitaryRNN"),
        (UnitaryRNN, torch.float64, "use OrthogonalRNN"),
        (OrthogonalRNNCell, torch.complex128, "use UnitaryRNNCell"),
        (OrthogonalGRU, torch.complex64, OF_ANOTHER),
        (OrthogonalLinear, torch.complex64, OF_ANOTHER),
        (UnitaryRNNCell, torch.float32, "use OrthogonalRNNCell"),
        (
            BlockOrthogonalConv2d,
            torch.complex64,
            OF_ANOTHER,
        ),
        (OrthogonalLinear, torch.float16, "make the layer with `dtype=torch.float32`"),
    ],
)
def test_a_dtype_that_a_layer_cannot_have(kind, dtype, remedy):
    known = "complex64 or torch.complex128" if "Unitary" in kind.__name__ else "float32 or torch.fl"
    words = f"must be torch.{known}.*, got {dtype}; {remedy}"
    with pytest.raises(TypeError, match=f"`dtype` of {kind.__name__} {words}"):
        kind(3, 8, *([3] if kind is BlockOrthogonalConv2d else []), dtype=dtype)


def test_an_activation_with_a_complex_offset():
    with pytest.raises(TypeError, match=r"must be real, got torch.complex64; .*torch.float32"):
        ModReLU(3, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"`dtype` must be real, got torch.int64; .*torch.float32"):
        ModReLU(3, dtype=torch.int64)


def test_a_readout_of_real_features():
    with pytest.raises(
        TypeError, match=r"`input` must be complex, got torch.float32; use torch.nn.L"
    ):
        RealReadout(3, 2)(torch.randn(4, 3))


# -- calls of a layer ------------------------------------------------------------------


def calls():
    x, h0 = torch.randn(5, 2, 3), torch.randn(1, 2, 8)
    sorted_twice = pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3]))
    return {
        "features": (torch.randn(5, 2, 4), None),
        "features of one sequence": (torch.randn(5, 4), None),
        "features of packed input": (sorted_twice, None),
        "4 dimensions": (torch.randn(1, 5, 2, 3), None),
        "1 dimension": (torch.randn(3), None),
        "h0, batch": (x, torch.randn(1, 3, 8)),
        "h0, layers": (x, torch.randn(2, 2, 8)),
        "h0, size": (x, torch.randn(1, 2, 7)),
        "h0, dimensions": (x, torch.randn(2, 8)),
        "h0 of one sequence": (x[:, 0], h0),
        "h0 of packed input": (
            pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]),
            torch.randn(1, 3, 8),
        ),
        "dtype": (x.double(), None),
    }


@every_layer
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
@pytest.mark.parametrize("case", calls())
def test_calls_that_torch_refuses_are_refused_as_torch_does(kind, nonlinearity, case):
    layer, theirs = kind(3, 8, nonlinearity=nonlinearity), LAYERS[kind](3, 8)
    x, h0 = calls()[case]
    error, words = raised(lambda: layer(x, h0))
    expected, their_words = raised_by_torch(lambda: theirs(x, h0))
    assert error is expected
    if "must have the type" in their_words:
        pytest.skip("this torch says it in other words")
    if kind is UnitaryRNN:
        their_words = their_words.replace("torch.float32", "torch.complex64")
    assert words == their_words


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
@pytest.mark.parametrize("packed", [False, True])
def test_complex_input_to_a_real_layer(nonlinearity, packed):
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"input dtype \(torch.complex64\) .* Use UnitaryRNN"):
        OrthogonalRNN(3, 8, nonlinearity=nonlinearity)(
            pack_padded_sequence(x, torch.tensor([5, 3])) if packed else x
        )


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_input_to_a_gated_unit_which_has_no_complex_form():
    x = torch.randn(5, 3, dtype=torch.complex64)
    words = r"input dtype \(torch.complex64\) is complex but {} is real\. Give it a real input$"
    for module in (OrthogonalGRU(3, 8), OrthogonalGRUCell(3, 8)):
        with pytest.raises(ValueError, match=words.format(type(module).__name__)):
            module(x)
        with pytest.raises(TypeError, match=r"must be real, got torch.complex64\. This module is"):
            module.to(torch.complex64)


@every_layer
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
def test_an_initial_state_of_another_dtype(kind, nonlinearity):
    layer = kind(3, 8, nonlinearity=nonlinearity)
    with pytest.raises(ValueError, match=r"hidden dtype \(torch.float64\) does not match weight d"):
        layer(torch.randn(5, 2, 3), torch.randn(1, 2, 8).double())


@every_layer
def test_unsorted_packed_input(kind):
    with pytest.raises(RuntimeError, match="`lengths` array must be sorted in decreasing order"):
        kind(3, 8)(pack_sequence([torch.randn(2, 3), torch.randn(4, 3)]))
    made_by_hand = PackedSequence(torch.randn(5, 3), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"batch_sizes .* must not increase, got \[2, 3\]"):
        kind(3, 8)(made_by_hand)


@every_layer
@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (0, 3)])
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
def test_empty_input(kind, nonlinearity, shape):
    layer, theirs = kind(3, 8, nonlinearity=nonlinearity), LAYERS[kind](3, 8)
    x = torch.randn(shape)
    if 0 in shape[:1]:
        error, words = raised(lambda: theirs(x))
        assert raised(lambda: layer(x)) == (error, words)
    else:
        assert [y.shape for y in layer(x)] == [y.shape for y in theirs(x)]


# -- calls of a cell -------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
@pytest.mark.parametrize(
    ("x", "h"),
    [((2, 4), None), ((2, 3), (2, 7)), ((2, 2, 3), None), ((2, 3), (1, 2, 8)), ((2, 3), (3, 8))],
    ids=str,
)
def test_calls_that_torchs_cell_refuses_are_refused_as_torch_does(kind, nonlinearity, x, h):
    cell, theirs = kind(3, 8, nonlinearity=nonlinearity), CELLS[kind](3, 8)
    x, h = torch.randn(x), None if h is None else torch.randn(h)
    assert raised(lambda: cell(x, h)) == raised(lambda: theirs(x, h))


def test_complex_input_to_a_real_cell():
    for nonlinearity in ("modrelu", "relu"):
        with pytest.raises(ValueError, match=r"input dtype \(torch.complex64\) .* Use UnitaryRNNC"):
            OrthogonalRNNCell(3, 8, nonlinearity=nonlinearity)(torch.randn(2, 3) + 0j)


@every_cell
def test_another_precision_is_no_input_of_a_cell(kind):
    cell = kind(3, 8)
    for x, h in (
        (torch.randn(2, 3).double(), None),
        (torch.randn(2, 3), torch.randn(2, 8).double()),
    ):
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            cell(x, h)
