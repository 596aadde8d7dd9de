"""Sum one buffer over the ranks of a communicator: each file is an algorithm, written down as rounds (`core.rounds`) or done by other means.

    collective = make_collective("ring", comm)      in the same order on every rank
    buffer = collective.allocate(n, dtype)          where this algorithm wants its buffers
    total = collective.plan(buffer[lo:hi])          once for each range, in the same order on every rank; all of it is allocated here
    total.start() ... total.test() ... total.wait() each step: nonblocking, in place

Nobody moves bytes but who calls: `test` is called between kernels, or `wait` at the end.
"""
