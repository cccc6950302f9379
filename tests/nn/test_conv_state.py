"""What torch does to modules leaves a layer orthogonal, on its manifold and in training."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, nn
from tests._asserts import assert_bit_equal, assert_same_to_rounding
from tests._replicas import on_two_replicas
from tests.nn._jacobian import assert_singular_values, signal

MANIFOLD = LowRankUnitary(2, retraction="polar")
LAYERS = {
    "real": lambda **options: make(nn.OrthogonalConv2d, **options),
    "complex": lambda **options: make(nn.UnitaryConv2d, **options),
}


def make(kind, **options):
    return kind(2, 4, (4, 3), init="haar", k=2, retraction="polar", **options)


def train(layer, steps=3):
    optimizer = ProjUNNRiemannianSGD(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(signal(layer)).abs().pow(4).mean().backward()
        optimizer.step()
    return layer


def assert_equal_layers(left, right):
    state = right.state_dict()
    assert left.state_dict().keys() == state.keys()
    for name, value in left.state_dict().items():
        assert_bit_equal(value, state[name])


def assert_trains_on_the_manifold(layer, tolerance=1e-5):
    for name, p in layer.named_parameters():
        if name != "bias":
            assert p.manifold == MANIFOLD
    before = layer.weight.detach().clone()
    train(layer)
    assert not torch.equal(layer.weight, before)
    assert_singular_values(layer, tolerance)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_state_is_weights_and_bias(kind):
    names = ["weight", "bias"] if kind == "complex" else ["weight_real", "weight", "bias"]
    assert sorted(LAYERS[kind]().state_dict()) == sorted(names)
    assert "bias" not in LAYERS[kind](bias=False).state_dict()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_dict_goes_to_a_file_and_back(kind, assign):
    layer, other = train(LAYERS[kind]()), LAYERS[kind]()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert_equal_layers(other, layer)
    assert_trains_on_the_manifold(other)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("kind", "saved", "size"),
    [
        (nn.OrthogonalConv2d, (8, 4), (4, 8)),
        (nn.OrthogonalConv2d, (8, 8), (16, 4)),
        (nn.UnitaryConv3d, (2, 3, 4), (4, 3, 2)),
    ],
)
def test_matrices_of_an_image_of_another_size_are_refused(kind, saved, size, assign):
    """Shapes do not tell them apart."""
    there = torch.nn.Sequential(kind(2, 3, saved, init="haar"), torch.nn.Linear(3, 3))
    here = torch.nn.Sequential(kind(2, 3, size, init="haar"), torch.nn.Linear(3, 3))
    file = io.BytesIO()
    torch.save(there.state_dict(), file)
    file.seek(0)
    state, before = torch.load(file, weights_only=True), copy.deepcopy(here[0].state_dict())
    message = (
        rf"`0\.weight` was saved by .* of {' x '.join(map(str, saved))}, .*`size` and `stride`"
    )
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            here.load_state_dict(state, assign=assign, strict=strict)
    for name, value in here[0].state_dict().items():
        assert_bit_equal(value, before[name])
    # As the message says.
    here.load_state_dict(dict(state), assign=assign)
    assert_bit_equal(here[0].weight.detach(), there[0].weight.detach())


def test_what_is_left_of_a_state_of_another_image_is_loaded():
    """Without the matrices, or with others in their place, as for a finer image."""
    old, new = nn.UnitaryConv2d(2, 3, (8, 4)), nn.UnitaryConv2d(2, 3, (4, 8), init="haar")
    before, state = new.weight.detach().clone(), old.state_dict()
    del state["weight"]
    new.load_state_dict(state, strict=False)
    assert_bit_equal(new.weight.detach(), before)
    large = nn.UnitaryConv2d(2, 3, 6)
    state["weight"] = nn.UnitaryConv2d(2, 3, 6, init="haar").weight.detach()
    large.load_state_dict(state)
    assert_bit_equal(large.weight.detach(), state["weight"])


def test_another_number_of_matrices_is_reported_by_torch():
    with pytest.raises(RuntimeError, match="size mismatch for weight") as error:
        nn.OrthogonalConv2d(2, 3, 6).load_state_dict(nn.OrthogonalConv2d(2, 3, 4).state_dict())
    assert "was saved by" not in str(error.value)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deep", "pickle"],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_copies_are_equal_and_independent(kind, copied):
    layer = train(LAYERS[kind]())
    other = copied(layer)
    assert_equal_layers(other, layer)
    before = copy.deepcopy(layer.state_dict())
    assert_trains_on_the_manifold(other)
    for name, value in layer.state_dict().items():
        assert_bit_equal(value, before[name])


CASTS = {
    "to": lambda layer: layer.to(torch.float64),
    "double": lambda layer: layer.double(),
    "in a network": lambda layer: torch.nn.Sequential(layer).double()[0],
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_double_precision_is_double_for_complex_parameters_too(kind, cast, swap):
    layer = LAYERS[kind]()
    expected = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        cast = CASTS[cast](layer)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for name, value in cast.state_dict().items():
        wide = torch.complex128 if expected[name].is_complex() else torch.float64
        assert_bit_equal(value, expected[name].to(wide))
    assert_trains_on_the_manifold(cast)
    assert_equal_layers(copy.deepcopy(cast).float().double(), cast.float().double())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_complex_layer_takes_a_complex_dtype():
    layer = LAYERS["complex"]().to(torch.complex128)
    assert {p.dtype for p in layer.parameters()} == {torch.complex128}
    assert_trains_on_the_manifold(layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_without_memory_is_given_some(kind):
    layer = LAYERS[kind](device="meta")
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert_singular_values(layer, 1e-5)
    assert_trains_on_the_manifold(layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_memory_format_for_images_leaves_the_matrices_alone(kind):
    layer = LAYERS[kind]()
    before = copy.deepcopy(layer)
    layer.to(memory_format=torch.channels_last)
    assert_equal_layers(layer, before)
    x = signal(layer)
    assert_same_to_rounding(layer(x.to(memory_format=torch.channels_last)), before(x))
    assert_trains_on_the_manifold(layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_can_be_shared_between_processes(kind):
    layer = LAYERS[kind]().share_memory()
    assert layer.weight.is_shared()
    assert_trains_on_the_manifold(layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_reset_draws_a_new_layer(kind):
    layer = train(LAYERS[kind]())
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert layer.bias.abs().max() == 0
    assert_trains_on_the_manifold(layer)


def replica(rank):
    outcome = {}
    for name, build in LAYERS.items():
        torch.manual_seed(rank)  # replicas share no seed: DDP sends rank 0's weights
        layer = build()
        parallel = DistributedDataParallel(layer)
        optimizer = ProjUNNRiemannianAdam(layer.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            parallel(signal(layer)).abs().pow(4).mean().backward()
            optimizer.step()
        outcome[name] = layer.state_dict()
    return outcome


def test_replicas_that_see_different_data_stay_equal(tmp_path):
    left, right = on_two_replicas(replica, tmp_path)
    for name, build in LAYERS.items():
        for key, value in left[name].items():
            assert_bit_equal(value, right[name][key])
        layer = build()
        layer.load_state_dict(left[name])
        assert_singular_values(layer, 1e-5)
