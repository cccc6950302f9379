"""Several tensors as one batch of matrices."""

import pytest
import torch

from geoopt_projunn.linalg.batch import count, gather, is_copy, scatter, split
from tests._asserts import assert_bit_equal


def parts(whole, shape):
    return [torch.randn(shape) for _ in range(whole)]


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 3, 4, 4), (0, 4, 4)], ids=str)
@pytest.mark.parametrize("pieces", [1, 3])
def test_what_was_gathered_goes_back(shape, pieces):
    tensors = parts(pieces, shape)
    whole = gather(tensors)
    assert whole.shape == (count(tensors), 4, 4)
    assert_bit_equal(whole, torch.stack(tensors).flatten(0, -3))
    doubled = 2 * torch.stack(tensors)
    whole.mul_(2)
    scatter(whole, tensors)
    assert_bit_equal(torch.stack(tensors), doubled)


def test_the_first_dimensions_may_be_all():
    tensors = [torch.tensor(i) for i in range(3)]
    assert gather(tensors, lead=0).tolist() == [0, 1, 2]
    assert gather(tensors[1:2], lead=0).tolist() == [1]


def test_one_tensor_and_the_parts_of_one_are_viewed():
    whole = torch.randn(3, 2, 4, 4)
    for tensors in ([whole[1]], list(whole.unbind(0)), [whole]):
        gathered = gather(tensors)
        assert not is_copy(gathered, tensors)
        assert gathered.data_ptr() == tensors[0].data_ptr()
        gathered.zero_()
        assert not any(tensor.any() for tensor in tensors)


def test_what_only_looks_like_the_parts_of_one_is_copied():
    whole = torch.randn(3, 4, 4)
    first, second, third = whole.unbind(0)
    by_columns = torch.randn(3, 4, 4)
    wide = torch.randn(3, 4, 8).to(torch.float64)
    others = {
        "in another order": [second, first, third],
        "some": [first, second],
        "one twice": [first, first, third],
        "one from elsewhere": [first, second, torch.randn(4, 4)],
        "transposed": list(by_columns.mT.unbind(0)),
        "every other column": list(wide[..., ::2].unbind(0)),
        "half as wide": list(wide.view(torch.float32)[..., :4].unbind(0)),
    }
    for name, tensors in others.items():
        gathered = gather(tensors)
        assert is_copy(gathered, tensors), name
        assert_bit_equal(gathered, torch.stack(tensors))
        before = [tensor.clone() for tensor in tensors]
        gathered.zero_()
        for tensor, kept in zip(tensors, before, strict=True):
            assert_bit_equal(tensor, kept)


def test_a_batch_that_cannot_be_viewed_as_one_goes_back_too():
    tensor = torch.randn(2, 3, 4, 4).transpose(0, 1)
    gathered = gather([tensor])
    assert is_copy(gathered, [tensor])
    scatter(torch.zeros_like(gathered), [tensor])
    assert not tensor.any()


def test_the_views_of_a_whole_have_the_shape_of_the_pieces():
    tensors = parts(3, (2, 4, 4))
    views = split(gather(tensors), tensors)
    for view, tensor in zip(views, tensors, strict=True):
        assert_bit_equal(view, tensor)
