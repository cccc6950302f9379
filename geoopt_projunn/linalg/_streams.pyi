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
    right_count: int,
    threads: int,
    x: int,
    rows: int,
    factor: int,
    /,
) -> None: ...
