"""Pipeline schedules: in which order a rank runs forwards and backwards of the microbatches of a batch, fixed before the run.

A file holds one, named like it; it says what is computed, and nothing else: sends, receives, sums over replicas and updates are added to it by
`core.lowering`, and `core.replay` proves that what comes of it ends. So a schedule is a few lines without a condition on who sends what to whom.
"""
