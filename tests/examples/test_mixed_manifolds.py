"""Parameters on four manifolds."""

from ._load import PNG, load


def test_mixed_manifolds_trains_four_kinds_of_parameters(tmp_path):
    result = load("mixed_manifolds").main(["--epochs", "8", "--output", str(tmp_path)])
    assert result["by_direction"] > 0.8
    assert result["by_place"] > 0.5
    assert result["turn (LowRankUnitary)"] < 1e-5
    assert result["prototypes (Sphere)"] < 1e-6
    assert result["anchors (PoincareBall)"] == 0
    assert (tmp_path / "mixed_manifolds.png").read_bytes().startswith(PNG)
