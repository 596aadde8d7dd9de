"""Consistency models: each file is one policy, and its name is the name on the command line.

A policy is one comparison: how old may a read be? And one word: does a pushed delta count when it arrives or when its clock closes?

    class Mine(SyncPolicy):
        commit = "arrival"
        def oldest_readable(self, clock, worker=-1, view=None):
            return clock - 5

A policy that decides who may compute when, for all tables at once (adaptive, quorum), has a gate besides; see `base.py`.
"""
