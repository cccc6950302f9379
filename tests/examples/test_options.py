"""What an example is told on the command line is checked before it works for minutes."""

import pytest

from ._load import EXAMPLES, load

each_script = pytest.mark.parametrize(
    "name", sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))
)


def refusal(name, capsys, *arguments):
    with pytest.raises(SystemExit):
        load(name).main(list(arguments))
    return capsys.readouterr().err


@each_script
def test_results_go_to_a_folder_and_not_to_a_file(name, capsys, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        said = refusal(name, capsys, "--smoke", "--output", str(path))
        assert f"argument --output: expected a folder, but '{tmp_path / 'file'}' is a file" in said


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("learn_a_rotation", ["--size", "1"], "argument --size: expected at least 2, for a plane"),
        ("learn_a_quantum_gate", ["--qubits", "4"], "argument --qubits: expected at least 5, for"),
        ("orthogonal_resnet", ["--width", "7"], "argument --width: expected at least 8, for k = 4"),
        ("adding_problem", ["--T", "1"], "argument --T: expected at least 2, one number to a hal"),
        ("sharded", ["--size", "63"], "argument --size: expected at least 64, the dimension of"),
        ("sharded", ["--k", "33", "--size", "64"], "--k must be at most size / 2 = 32"),
        ("permuted_digits", ["--k", "9", "--hidden", "16"], "--k must be at most hidden / 2 = 8"),
        ("deep_norm_preserving", ["--channels", "1"], "--k must be at most channels / 2 = 0"),
    ],
)
def test_a_size_has_room_for_the_planes_of_a_step(name, arguments, rule, capsys):
    assert rule in refusal(name, capsys, *arguments)


@each_script
def test_counts_are_whole_numbers_in_range(name, capsys):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    for option in ("steps", "epochs", "batch", "size", "depth", "channels", "width", "k"):
        if f'"--{option}", type=' in text:
            for value in ("0", "-1", "1.5"):
                said = refusal(name, capsys, f"--{option}={value}")
                assert f"argument --{option}: expected a whole number above 0" in said


class Started(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "work", "size", "without", "with_ranks"),
    [
        ("copy_memory", "run", "hidden", ["lstm", "gru", "frozen"], "orthogonal gru"),
        ("adding_problem", "run", "hidden", ["lstm", "gru", "frozen"], "unitary"),
        ("mnist_1d", "compare", "hidden", ["GRU"], "orthogonal GRU, frozen"),
        ("mnist_1d_conv", "compare", "width", ["plain"], "small kernels"),
    ],
)
def test_a_rank_is_checked_only_where_a_network_has_one(
    name, work, size, without, with_ranks, capsys, monkeypatch
):
    example = load(name)

    def start(*arguments, **options):
        raise Started

    monkeypatch.setattr(example, work, start)
    with pytest.raises(Started):
        example.main([f"--{size}", "8", "--networks", *without])
    said = refusal(name, capsys, f"--{size}", "8", "--networks", *without, with_ranks)
    assert f"--k must be at most {size} / 2 = 4" in said


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--iterations", "-1", "a whole number from 0 on, got '-1'"),
        ("--seeds", "-1", "a whole number from 0 on, got '-1'"),
        ("--clip", "-1", "a number above 0, got '-1'"),  # it would turn gradients round
        ("--clip", "nan", "a number above 0, got 'nan'"),
    ],
)
def test_what_would_spoil_a_run_is_refused(option, value, rule, capsys):
    said = refusal("copy_memory", capsys, f"{option}={value}")
    assert f"argument {option}: expected {rule}" in said
