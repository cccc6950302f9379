"""A rotation for a quantized language model."""

import pytest
import torch

from ._load import PNG, load


def test_a_rotation_of_a_quantized_language_model_is_learned(tmp_path, capsys):
    example = load("rotate_quantized_lm")
    rows = example.main(["--smoke", "--output", str(tmp_path)])
    assert [row[1] for row in rows] == ["exact", "no rotation", "Hadamard", *example.METHODS]
    assert (tmp_path / "rotate_quantized_lm.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    perplexities = {row[1]: row[2] for row in rows}
    for name, perplexity in perplexities.items():
        assert name in printed
        assert 1 < perplexity < 103
    for name in example.METHODS:
        assert perplexities[name] != perplexities["Hadamard"]
    assert example.main(["--smoke", "--output", str(tmp_path)])[3][:3] == rows[3][:3]


def test_a_rotation_passes_through_an_exact_model():
    example = load("rotate_quantized_lm")
    torch.manual_seed(0)
    model = example.LanguageModel(9, 32).double()
    text = torch.randint(9, (2, example.CONTEXT + 1))
    r = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    rough, fine = (model.loss(text, example.rotated(r, bits)).item() for bits in (3, 40))
    exact = model.loss(text).item()
    assert fine == pytest.approx(exact, rel=1e-9)
    assert rough != pytest.approx(exact, rel=1e-4)
    # The same by rotating what writes to the stream, with nothing left to do for what reads it.
    with torch.no_grad():
        for writer in (model.embedding, model.places):
            writer.weight.copy_(writer.weight @ r.mT)
        for qkv, out, up, down in model.blocks:
            for writer in (out, down):
                writer.weight.copy_(r @ writer.weight)
            for reader in (qkv, up):
                reader.weight.copy_(reader.weight @ r.mT)
        model.head.weight.copy_(model.head.weight @ r.mT)
    assert model.loss(text).item() == pytest.approx(exact, rel=1e-9)


def test_quantized_rows_have_few_values_and_the_gradient_goes_straight_through():
    example = load("rotate_quantized_lm")
    torch.manual_seed(0)
    x = torch.randn(5, 400, requires_grad=True)
    rounded = example.quantize(x, 3)
    for row, given in zip(rounded.detach(), x.detach(), strict=True):
        whole = row * 3 / given.abs().max()
        assert torch.allclose(whole, whole.round(), atol=1e-5)
        assert whole.abs().max() == pytest.approx(3)
        assert (row - given).abs().max() <= given.abs().max() / 6 * 1.00001
    direction = torch.randn(5, 400)
    (grad,) = torch.autograd.grad(rounded, x, direction)
    assert torch.equal(grad, direction)
