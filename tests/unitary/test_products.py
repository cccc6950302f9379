"""geoopt's products with such manifolds."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_same_to_rounding
from tests._matrices import WIDE_DTYPES, unitary

from ._cases import BATCH
from ._methods import BROADCAST


@pytest.fixture(params=WIDE_DTYPES, ids=["float64", "complex128"])
def product(request):
    """A product of two of ours, a point, another one and two vectors, and their parts."""
    dtype = request.param
    parts = (LowRankUnitary(1), LowRankUnitary(None, retraction="polar"))
    shapes = ((6, 6), (3, 3))
    manifold = geoopt.ProductManifold(*zip(parts, shapes, strict=True))
    x = [unitary(*BATCH, *shape, dtype=dtype) for shape in shapes]
    y = [unitary(*BATCH, *shape, dtype=dtype) for shape in shapes]
    u = [torch.randn(*BATCH, *shape, dtype=dtype) for shape in shapes]
    v = [torch.randn(*BATCH, *shape, dtype=dtype) for shape in shapes]
    return manifold, parts, (x, y, u, v)


@pytest.mark.parametrize(
    "method",
    sorted(
        set(BROADCAST)
        - {"dist", "dist2", "inner", "norm", "component_inner", "retr_transp", "expmap_transp"}
    ),
)
def test_a_product_is_its_parts(product, method):
    manifold, parts, values = product
    packed = [manifold.pack_point(*value) for value in values]
    result = manifold.unpack_tensor(BROADCAST[method](manifold, *packed))
    for i, (part, each) in enumerate(zip(parts, result, strict=True)):
        expected = BROADCAST[method](part, *(value[i] for value in values))
        assert_same_to_rounding(each, expected, ulps=100)


@pytest.mark.parametrize("method", ["retr_transp", "expmap_transp"])
def test_a_product_steps_and_transports_its_parts(product, method):
    manifold, parts, (x, _, u, v) = product
    packed = [manifold.pack_point(*value) for value in (x, u, v)]
    results = [manifold.unpack_tensor(t) for t in getattr(manifold, method)(*packed)]
    for i, part in enumerate(parts):
        expected = getattr(part, method)(x[i], u[i], v[i])
        for each, other in zip(results, expected, strict=True):
            assert_same_to_rounding(each[i], other, ulps=100)


def test_lengths_in_a_product_add_as_squares(product):
    manifold, parts, (x, y, u, v) = product
    px, py, pu, pv = (manifold.pack_point(*value) for value in (x, y, u, v))
    inner = sum(part.inner(*each) for part, *each in zip(parts, x, u, v, strict=True))
    dist2 = sum(part.dist2(*each) for part, *each in zip(parts, x, y, strict=True))
    assert_same_to_rounding(manifold.inner(px, pu, pv), inner)
    assert_same_to_rounding(manifold.dist2(px, py), dist2)
    components = manifold.unpack_tensor(manifold.component_inner(px, pu, pv))
    for part, component, *each in zip(parts, components, x, u, v, strict=True):
        assert_same_to_rounding(component, part.component_inner(*each).expand_as(component))


def test_a_product_with_a_sphere_has_random_points_and_checks_them():
    manifold = geoopt.ProductManifold((LowRankUnitary(1), (4, 4)), (geoopt.Sphere(), 3))
    x = manifold.random(5, 19)
    assert manifold.check_point_on_manifold(x)
    u = manifold.egrad2rgrad(x, torch.randn(5, 19))
    assert manifold.check_vector_on_tangent(x, u)
    assert manifold.check_point_on_manifold(manifold.retr(x, u))
    assert not manifold.check_point_on_manifold(2 * x)
