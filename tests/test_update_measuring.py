"""How updates are measured: in rounds, within a budget, beside copies."""

import pytest

from tests._update import COPY, METHODS, result, timing, update, update_methods, update_problem


def test_a_time_is_that_of_one_call():
    calls = []
    assert 0 < timing.timed(lambda: calls.append(sum(range(10**5))), 3) < 1
    assert len(calls) == 3


def test_a_method_too_slow_for_the_budget_is_left_out_and_named(capsys):
    options = update.parse(["--budget", "1"])
    slow = next(m for m in METHODS if m.name == "torch orthogonal, cayley")
    ours = next(m for m in METHODS if m.name == update_methods.OURS)
    earlier = [
        result(slow.name, 16, [50.0]),
        result(ours.name, 16, [50.0]),
    ]
    options.rounds = 1
    results = list(update.run_size(32, [COPY, slow, ours], earlier, options))
    assert [r.method for r in results] == [COPY.name, ours.name]
    assert f"{slow.name}: left out at n = 32" in capsys.readouterr().out


def test_a_method_out_of_budget_takes_no_further_turns():
    calls = []
    subject = update_methods.Update(lambda: calls.append(1))
    seconds = update.measure({"one": subject}, rounds=4, budget=0.0, label="")
    assert len(seconds["one"]) == 1


def test_caches_are_emptied_before_each_measured_update(monkeypatch):
    events = []
    monkeypatch.setattr(update, "empty_caches", lambda: events.append("empty"))
    step = update_methods.Update(lambda: events.append("step"))
    update.measure({"one": step}, 3, 1.0, "", cold=True)
    assert events == ["step"] * 2 + ["empty", "step"] * 3
    events.clear()
    update.measure({"one": step}, 3, 1.0, "")
    assert "empty" not in events
    timing.empty_caches()


def test_large_matrices_are_measured_a_few_at_a_time(monkeypatch):
    problem = update_problem.draw(64)
    monkeypatch.setattr(update, "ALIVE_BYTES", 3 * 6 * 64 * 64 * 4)
    parts = list(update.crews(METHODS, problem))
    assert all(part[0] is COPY for part in parts)
    assert max(map(len, parts)) == 4
    assert [m for part in parts for m in part[1:]] == [m for m in METHODS if m is not COPY]


def test_a_method_is_compared_with_the_copies_of_its_own_rounds(monkeypatch):
    """Each copy on this clock takes longer than the one before, and a step ten times as long."""
    copies = []

    def timed(function, calls=1):
        if function() == "copy":
            copies.append(3e-3 * (len(copies) + 1))
            return copies[-1]
        return 10 * copies[-1]

    def method(name, passes):
        subject = update_methods.Update(lambda: name)
        return update_methods.Method(name, "ours", lambda _: subject, passes, 2)

    monkeypatch.setattr(update, "timed", timed)
    monkeypatch.setattr(update, "ALIVE_BYTES", 1)  # one at a time
    chosen = [method("one", 9), method("copy", 3), method("two", 6)]
    options = update.parse(["--rounds", "5", "--budget", "100"])
    copy, one, two = update.run_size(32, chosen, [], options)
    assert [copy.method, one.method, two.method] == ["copy", "one", "two"]
    assert copy.over_floor == 1
    assert one.over_floor == pytest.approx(10 * 3 / 9)
    assert two.over_floor == pytest.approx(10 * 3 / 6)
    assert len(copies) == 2 * 7  # two to warm up
