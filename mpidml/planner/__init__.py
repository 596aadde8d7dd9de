"""Propose how to run a job on so many ranks: every way to lay them on a grid is timed on virtual clocks, and what does not fit in memory is left out.

    candidate  a grid, a schedule, a number of microbatches, activations kept or computed again
    machine    hosts, cores, and what is between ranks: where a grid's lines lie, what a sum over one costs
    price      seconds, bytes and memory (`nn.room`) of a candidate, by what one rank holds and sends of a stage's layers (`nn.parts`)
    layout     whether a job's strategy can run on so many ranks, asked without them
    search     the best of all, without timing those that cannot be among them
    table      what is told of them

Nothing is measured here and no file is written: `mpidml.plan` does that.
"""
