"""Run the CUDA kernels without a GPU, unchanged, under checks that a GPU does not make.

    cuda_cpu.h     the language for g++: what is not listed there does not compile
    runtime.cpp    blocks one after the other, threads as fibers, and a look at every load and store
    compiled       builds a kernel file with g++ and launches its kernels on NumPy arrays
    cupy_double    what the package uses of CuPy: its arrays refuse what device arrays refuse, its streams do nothing until somebody waits

Found in one run, always: accesses out of bounds or misaligned, writes to const arguments, races within and between blocks, reads of shared memory that
nobody wrote, divergent barriers, lanes named that returned or do not exist, deadlocks; and what a launch accepts silently: scalars of another
width, other dtypes, strided arrays, overlapping __restrict__ arguments. Not shown: speed, weak memory ordering, spin waits between blocks.
"""
