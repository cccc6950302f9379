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
    k: int,
    is_lsi: bool,
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

# kind, b, n, k, is_lsi, retraction, by_columns, sweep, threads, length; tables, each with
# its length: x, d, steps, skipped
def step(*numbers: int) -> None: ...

# ...; table of buffers, its length; nesterov, numbers: d is the gradient.
def momentum_step(*numbers: int) -> None: ...

# ...; is_scalar; tables, each with its length: first, second, most, which may be empty; numbers:
# d is the gradient.
def adam_step(*numbers: int) -> None: ...

# kind, b, entries, is_scalar, threads; grad, first, second, most or 0, taken, numbers; and
# directions and finite, or active.
def adam_direction(*numbers: int) -> None: ...
def adam_moments(*numbers: int) -> None: ...

# kind, b, entries, nesterov, threads; grad, buffer, taken, numbers; and directions and finite, or
# active.
def momentum_direction(*numbers: int) -> None: ...
def momentum_buffer(*numbers: int) -> None: ...
