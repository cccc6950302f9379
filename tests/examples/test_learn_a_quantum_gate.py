"""A quantum gate, whole and as a circuit."""

import pytest
import torch

from ._load import PNG, load


def test_a_quantum_gate_is_learned_twice_to_the_same_infidelity(tmp_path, capsys):
    example = load("learn_a_quantum_gate")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    assert [(r.task, r.method) for r in records] == [
        (task, method) for task, methods in example.METHODS.items() for method in methods
    ]
    assert (tmp_path / "learn_a_quantum_gate.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    whole = {r.method: r.infidelities[-1] for r in records if r.task == "whole"}
    assert whole["ours, k = 16"] < 1e-6
    for record in records:
        assert record.method in printed
        assert record.infidelities[-1] < record.infidelities[0]
    again = example.learn(example.Record("whole", "ours, k = 16", 0), 5, 80)
    assert again.infidelities[-1] == whole["ours, k = 16"]


def test_a_circuit_applies_its_gates_to_neighbouring_qubits():
    example = load("learn_a_quantum_gate")
    torch.manual_seed(0)
    gates = example.random_unitary(len(example.brickwork(4)), 4, 4).contiguous()
    dense = torch.eye(16, dtype=gates.dtype)
    for first, gate in zip(example.brickwork(4), gates, strict=True):
        before, after = (torch.eye(2**m, dtype=gates.dtype) for m in (first, 2 - first))
        dense = torch.kron(torch.kron(before, gate), after) @ dense
    states = torch.randn(16, 3, dtype=gates.dtype)
    assert torch.allclose(example.circuit(4, gates, states), dense @ states, atol=1e-12)


def test_the_infidelity_keeps_its_digits_and_ignores_a_phase():
    example = load("learn_a_quantum_gate")
    torch.manual_seed(0)
    u, w = example.random_unitary(8, 8), example.random_unitary(8, 8)
    overlap = (u.mH @ w).trace().abs() / 8
    assert example.infidelity(w, u) == pytest.approx(float(1 - overlap**2), rel=1e-12)
    assert example.infidelity(u * torch.tensor(0.6 + 0.8j, dtype=u.dtype), u) < 1e-30
