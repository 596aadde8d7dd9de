"""Do what the pure floors describe: the only folder that imports mpi4py, reads clocks and writes files.

    launch.py   start, before anything heavy is imported      memory.py     buffers that ranks of a host share
    comm.py     communicators that count bytes                bell.py       sleep until somebody rings
    wire.py     a message as a header and raw buffers         driver.py     roles on MPI
"""
