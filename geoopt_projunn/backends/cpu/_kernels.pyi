USES_THREADS: bool

def both_sides(
    kind: int,
    b: int,
    n: int,
    m: int,
    left_count: int,
    right_count: int,
    threads: int,
    x: int,
    left: int,
    right: int,
    out_left: int,
    out_right: int,
    /,
) -> None: ...
def add_product(
    kind: int,
    b: int,
    n: int,
    m: int,
    count: int,
    threads: int,
    x: int,
    rows: int,
    factor: int,
    /,
) -> None: ...
def sketch(
    kind: int,
    b: int,
    n: int,
    p: int,
    k: int,
    sketch: int,
    by_columns: int,
    threads: int,
    x: int,
    d: int,
    counters: int,
    rows: int,
    cores: int,
    /,
) -> None: ...
def retract(kind: int, retraction: int, b: int, r: int, cores: int, deltas: int, /) -> None: ...
def turn(
    kind: int,
    b: int,
    n: int,
    p: int,
    r: int,
    sweep: int,
    by_columns: int,
    threads: int,
    x: int,
    rows: int,
    deltas: int,
    counters: int,
    active: int,
    /,
) -> None: ...

# kind, b, n, p, k, sketch, retraction, by_columns, sweep, threads, length; tables, each with its
# length: x, grad, steps, skipped; rule, numbers; tables of what the rule keeps, each with its
# length: the first buffer, the second, the third; whether the second is one number a matrix; the
# normalization, and where the share is below which a generator is rounding.
def step(*numbers: int) -> None: ...
