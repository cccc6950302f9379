"""Several tensors as one batch of matrices."""

import pytest
import torch

from geoopt_projunn.backends.batch import gather, scatter
from geoopt_projunn.backends.batch_sizes import parts_of_list
from tests._asserts import assert_bit_equal


def parts(whole, shape):
    return [torch.randn(shape) for _ in range(whole)]


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 3, 4, 4), (0, 4, 4)], ids=str)
@pytest.mark.parametrize("pieces", [1, 3])
def test_what_was_gathered_goes_back(shape, pieces):
    tensors = parts(pieces, shape)
    whole = gather(tensors)
    assert_bit_equal(whole, torch.stack(tensors).flatten(0, -3))
    doubled = 2 * torch.stack(tensors)
    whole.mul_(2)
    scatter(whole, tensors)
    assert_bit_equal(torch.stack(tensors), doubled)


def test_the_first_dimensions_may_be_all():
    tensors = [torch.tensor(i) for i in range(3)]
    assert gather(tensors, lead=0).tolist() == [0, 1, 2]
    assert gather(tensors[1:2], lead=0).tolist() == [1]


def test_one_tensor_is_viewed():
    tensor = torch.randn(3, 4, 4)
    for each in (tensor, tensor[1], tensor.conj(), tensor.unsqueeze(0)):
        gathered = gather([each])
        assert gathered.data_ptr() == each.data_ptr()


def test_several_are_copied_as_they_are():
    whole = torch.randn(3, 4, 4, dtype=torch.complex64)
    for tensors in (list(whole.unbind(0)), list(whole.conj().unbind(0)), [whole[0], whole[1].mT]):
        before = torch.stack([tensor.resolve_conj() for tensor in tensors])
        gathered = gather(tensors)
        assert_bit_equal(gathered, before)
        gathered.zero_()
        assert_bit_equal(torch.stack(tensors).resolve_conj(), before)


def test_a_batch_that_cannot_be_viewed_as_one_goes_back_too():
    tensor = torch.randn(2, 3, 4, 4).transpose(0, 1)
    gathered = gather([tensor])
    scatter(torch.zeros_like(gathered), [tensor])
    assert not tensor.any()


class OnAGpu(torch.Tensor):
    """What says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("n", "each"), [(32, 16384), (768, 28), (1024, 16), (2048, 1)])
def test_on_a_gpu_matrices_are_stacked_by_their_bytes(n, each):
    """All that take less time to pass over than a step takes to launch."""
    x = torch.empty(n, n, device="meta").as_subclass(OnAGpu)
    pieces = parts_of_list([x] * 40)
    assert pieces[0] == slice(0, each)
    assert pieces[-1].stop >= 40
