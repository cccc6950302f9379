"""Kernels that are written by hand: what a GPU does with them, and what it may do."""

import numpy as np
import pytest

from .machine import Launch, Machine
from .reading import Fault, read

HEAD = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u32 kernel_param_1
)
.reqntid 64
{
    .reg .pred %p<9>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    mov.b32 %r0, global_smem;
    mov.u32 %r1, %tid.x;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b32 %r2, [kernel_param_1];
    mad.wide.u32 %rd2, %r1, 4, %rd1;    // the thread's own number in memory
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r0, %r3;              // and in shared memory
    xor.b32 %r5, %r1, 32;               // a thread of the other warp
    shl.b32 %r6, %r5, 2;
    add.s32 %r6, %r0, %r6;
"""


def run(body, number=7, *, programs=1, overlaps=False, seed=0, start=1):
    """Run two warps of each program on 64 numbers; return what they become."""
    numbers = start * np.arange(64, dtype=np.uint32)
    begin = numbers.ctypes.data
    launch = Launch((programs, 1, 1), 2, 512, (begin, number), overlaps)
    Machine(seed).run(read(HEAD + body + "ret;\n}"), launch, [(begin, begin + numbers.nbytes)])
    return numbers


def test_each_thread_has_a_number_of_its_own():
    body = "ld.global.b32 %r7, [%rd2]; mad.lo.s32 %r7, %r7, %r2, 1; st.global.b32 [%rd2], %r7;"
    assert (run(body) == 7 * np.arange(64) + 1).all()


def test_threads_branch_and_come_together():
    body = """
    mov.b32 %r7, 5;
    setp.lt.u32 %p1, %r1, 40;
    @%p1 bra $LOW;
    add.s32 %r7, %r7, 100;
    bra.uni $BOTH;
$LOW:
    add.s32 %r7, %r7, 1;
$BOTH:
    add.s32 %r7, %r7, %r1;
    @!%p1 st.global.b32 [ %rd2 + 0 ], { %r7 };
    @%p1 st.global.b32 [ %rd2 + 0 ], { %r1 };
    """
    threads = np.arange(64)
    assert (run(body) == np.where(threads < 40, threads, 105 + threads)).all()


def test_threads_of_a_warp_exchange_numbers():
    body = "shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1; st.global.b32 [%rd2], %r7;"
    assert (run(body) == np.arange(64) ^ 1).all()


def test_warps_exchange_numbers_by_shared_memory():
    body = """
    st.shared.b32 [ %r4 + 0 ], %r1;
    bar.sync 0;
    ld.shared.b32 %r7, [%r6];
    st.global.b32 [%rd2], %r7;
    """
    assert (run(body) == np.arange(64) ^ 32).all()


def test_programs_add_to_one_number_and_each_knows_what_there_was():
    body = """
    setp.eq.b32 %p1, %r1, 0;
    mov.b32 %r7, 3;
    @%p1 atom.global.gpu.acq_rel.add.u32 %r8, [ %rd1 + 0 ], %r7;
    mov.u32 %r5, %ctaid.x;
    mad.wide.u32 %rd3, %r5, 4, %rd1;
    @%p1 st.global.b32 [ %rd3 + 4 ], %r8;
    """
    found = run(body, programs=5)
    assert found[0] == 15
    assert sorted(found[1:6]) == [0, 3, 6, 9, 12]


def test_the_order_of_programs_is_that_of_a_seed():
    body = "setp.eq.b32 %p1, %r1, 0; mov.u32 %r7, %ctaid.x; @%p1 st.global.b32 [%rd1], %r7;"
    last = [run(body, programs=9, seed=seed)[0] for seed in (1, 2, 3, 1, 2, 3)]
    assert last[:3] == last[3:]
    assert len(set(last)) > 1


def test_a_number_keeps_its_sign_in_a_longer_register():
    body = """
    ld.param.s32 %rd3, [kernel_param_1];
    cvt.rn.f64.s64 %rd4, %rd3;
    cvt.rn.f32.f64 %r7, %rd4;
    st.global.b32 [%rd2], %r7;
    """
    assert (run(body, number=-5).view(np.float32) == -5).all()


TICKET = (
    """
    setp.eq.b32 %p1, %r1, 32;           // a thread of one warp stores what the program has found
    mov.u32 %r5, %ctaid.x;
    mad.wide.u32 %rd3, %r5, 4, %rd1;
    mov.b32 %r7, 1;
    @%p1 st.global.b32 [ %rd3 + 64 ], %r7;
    BARRIER
    setp.eq.b32 %p2, %r1, 0;            // one of the other warp takes a ticket
    @%p2 atom.global.gpu.acq_rel.add.u32 %r8, [ %rd1 + 0 ], %r7;
    setp.eq.b32 %p3, %r8, 4;
    and.pred %p4, %p2, %p3;             // and the last program adds up
    mov.b32 %r6, 0;
"""
    + "".join(
        f"@%p4 ld.global.b32 %r7, [ %rd1 + {64 + 4 * i} ]; @%p4 add.s32 %r6, %r6, %r7;"
        for i in range(5)
    )
    + "@%p4 st.global.b32 [ %rd1 + 128 ], %r6;"
)


def sum_by_tickets(barrier, seed):
    body = TICKET.replace("BARRIER", barrier)
    numbers = run("setp.lt.u32 %p5, %r1, 0;" + body, programs=5, seed=seed, start=0)
    return numbers[32]


def test_a_ticket_without_a_barrier_before_it_is_wrong_in_some_order():
    assert {sum_by_tickets("bar.sync 0;", seed) for seed in range(20)} == {5}
    assert len({sum_by_tickets("", seed) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.s32 %r7, %r2, -3", 4),
        ("sub.s32 %r7, 3, %r2", 2**32 - 4),
        ("div.s32 %r7, -7, 2", 2**32 - 3),
        ("rem.s32 %r7, -7, 2", 2**32 - 1),
        ("rem.u32 %r7, %r2, 4", 3),
        ("shl.b32 %r7, %r2, 33", 0),
        ("shr.s32 %r7, -8, 1", 2**32 - 4),
        ("shr.u32 %r7, -8, 28", 15),
        ("bfe.u32 %r7, 240, 4, 3", 7),
        ("bfe.s32 %r7, 240, 4, 4", 2**32 - 1),
        ("prmt.b32 %r7, 0x44332211, 0x88776655, 0x7401", 0x88551122),
        ("mul.wide.s32 %rd3, -2, 3; cvt.u32.u64 %r7, %rd3", 2**32 - 6),
        ("selp.b32 %r7, 1, 2, %p8", 2),
        ("cvt.rzi.s32.f32 %r7, 0fC0200000", 2**32 - 2),
        ("cvt.rni.s32.f32 %r7, 0f40200000", 2),
        ("min.f32 %r7, 0f7FC00000, 0f3F800000", 0x3F800000),
        ("fma.rn.f32 %r7, 0f40000000, 0f40400000, 0f3F800000", 0x40E00000),
        ("neg.f32 %r7, 0f3F800000", 0xBF800000),
        ("redux.sync.max.s32 %r7, %r2, -1", 7),
    ],
)
def test_arithmetic_is_that_of_a_gpu(instruction, expected):
    body = f"setp.lt.u32 %p8, %r1, 0; {instruction}; st.global.b32 [%rd2], %r7;"
    assert (run(body) == expected).all()


def test_matrices_of_the_registers_of_a_warp_are_multiplied():
    """With entries of 1 in the first matrix, each result is a sum of the other's columns."""
    body = """
    cvt.rn.f64.u32 %rd3, %r1;
    mov.b64 %rd4, 0d3FF0000000000000;
    mov.b64 %rd5, 0d0000000000000000;
    mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd6, %rd7}, {%rd4}, {%rd3}, {%rd5, %rd5};
    cvt.rzi.u32.f64 %r7, %rd6;
    st.global.b32 [%rd2], %r7;
    """
    columns = np.arange(32).reshape(8, 4).sum(1)
    assert (run(body)[:32] == columns[2 * (np.arange(32) % 4)]).all()


FAULTS = {
    "it stores outside": (
        "st.global.b32 [ %rd2 + 4 ], %r1;",
        "is in none of the arguments",
    ),
    "it reads outside": ("ld.global.b32 %r7, [ %rd1 + 256 ];", "is in none of the arguments"),
    "it stores outside of shared memory": (
        "st.shared.b32 [ %r4 + 384 ], %r1;",
        "outside of the memory that a program shares",
    ),
    "it reads what another warp has just written": (
        "st.shared.b32 [%r4], %r1; ld.shared.b32 %r7, [%r6];",
        "since the last barrier",
    ),
    "it writes where another warp has just read": (
        "ld.shared.b32 %r7, [%r6]; st.shared.b32 [%r4], %r1;",
        "since the last barrier",
    ),
    "it writes where another warp has just written": (
        "st.shared.b32 [%r0], %r1;",
        "a warp writes where another one has written since the last barrier",
    ),
    "it uses what is still being copied": (
        "cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4;"
        "cp.async.commit_group; ld.shared.b32 %r7, [%r4];",
        "a warp uses what is still being copied",
    ),
    "it never waits for a copy": (
        "cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4; cp.async.commit_group;",
        "nobody waits for a copy",
    ),
    "a vector lies across": ("ld.global.v2.b32 {%r7, %r8}, [%rd2];", "is not a multiple"),
    "some threads are at a barrier": (
        "setp.eq.b32 %p1, %r1, 0; @%p1 bra $END; bar.sync 0;\n$END:",
        "only some threads of a warp run bar.sync",
    ),
    "warps are at different barriers": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $END; bar.sync 0;\n$END:",
        "warps wait for each other at different places",
    ),
    "a thread asks one that has branched off": (
        "setp.eq.b32 %p1, %r1, 0; @%p1 shfl.sync.idx.b32 %r7, %r1, 5, 31, -1;",
        "a thread is asked that does not take part",
    ),
    "a register has no value": ("add.s32 %r7, %r8, 1;", "%r8 is read before it is written"),
    "a conversion is unknown": ("cvt.f32.f16 %r7, %r1;", "unknown: cvt.f32.f16"),
    "a rounding is unknown": ("add.rz.f32 %r7, %r1, %r1;", "unknown: add.rz.f32"),
    "a result is cut off": ("fma.rn.sat.f32 %r7, %r1, %r1, %r1;", "unknown: fma.rn.sat.f32"),
    "some threads wait for copies": (
        "setp.eq.b32 %p1, %r1, 0; @%p1 cp.async.wait_group 0;",
        "only some threads take part",
    ),
    "an instruction is unknown": ("vote.sync.all.pred %p1, %p1, -1;", "unknown: vote.sync.all"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_gpu_would_not_always_do_alike_is_an_error(name):
    body, words = FAULTS[name]
    with pytest.raises(Fault, match=words):
        run(body)


def test_a_kernel_that_may_start_early_waits_before_it_touches_memory():
    touch, wait = "st.global.b32 [%rd2], %r2;", "griddepcontrol.wait;"
    assert (run(wait + touch, overlaps=True) == 7).all()
    with pytest.raises(Fault, match=r"touched before griddepcontrol\.wait"):
        run(touch + wait, overlaps=True)
    with pytest.raises(Fault, match="never waits for the one before it"):
        run("", overlaps=True)


def test_a_copy_is_there_once_it_was_waited_for():
    body = """
    cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.b32 %r7, [%r6];
    st.global.b32 [%rd2], %r7;
    """
    assert (run(body) == np.arange(64) ^ 32).all()
