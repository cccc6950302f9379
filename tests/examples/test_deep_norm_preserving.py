"""A deep network that preserves norms."""

from ._load import PNG, load


def test_deep_norm_preserving_passes_gradients_to_its_first_layer(tmp_path):
    example = load("deep_norm_preserving")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    assert (tmp_path / "deep_norm_preserving.png").read_bytes().startswith(PNG)
    assert len(records) == 2 * len(example.LEARNING_RATES)
    ratios = {record.network: record.gradient_ratio for record in records}
    assert ratios["unconstrained"] < 0.2 < ratios["orthogonal"] < 5
