"""Run what Triton compiles for a GPU on a CPU, instruction by instruction.

Interpreted kernels show that their Python is right. What a GPU runs is made of it by a compiler,
which places data in the registers of threads and in memory that they share, and decides where they
wait for each other. Here that code runs. PTX is the assembler of NVIDIA's GPUs; ``ptxas``, which
turns it into machine code, is the one part of the way that is left out.

`reading` takes PTX apart, `operands` and `arithmetic` are about numbers, `instructions` about what
each of them does, `warps` about the 32 threads that run in step, `memory` about what they read and
write, `machine` about launches. An unknown instruction is an error. `plugin` is a driver for
Triton, and makes pytest use it.

The order in which the warps of all programs run is random. So a result that depends on it does not
equal the reference, for some seed. Some faults that no order need show are errors as well: shared
memory that two warps use without a barrier in between, copies that nobody has waited for, kernels
that touch memory before those before them have ended, and memory outside of all arguments where
Triton launches (the launches of C++ know addresses alone).

What this cannot find: global memory that two warps exchange without a barrier, unless an order
shows it; threads of one warp that are not in step, which they are here; and what depends on the
rounding of approximate instructions, which are exact here.
"""
