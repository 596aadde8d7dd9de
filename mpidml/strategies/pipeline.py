"""Train a network whose layers lie on several ranks, one range each: microbatches of a batch flow through them, in the order of a schedule.

    rank 0   F0 F1 F2 F3       B0    B1 ...        stage 0: layers 1 to 3
    rank 1      F0 F1 F2 B0 F3 B1 ...              stage 1: layers 4 to 6
"""

from __future__ import annotations

from mpidml.runtime.staged import Staged


class Pipeline(Staged):
    """All ranks are stages of one pipeline, unless --grid says otherwise. Source: Huang et al. 2019; Narayanan et al. 2019, 2021."""
