"""Note what a stage has come to in a replay: what is done, kept and read, of which microbatch."""

from __future__ import annotations

from collections import defaultdict


class StageRecord:
    """What a stage has done on a rank: microbatches whose forward, input gradient, weight gradient is done, received, sent.

    `summed_at`: when the sum of its gradients over replicas is there; infinite while one of them has not come to it.
    """

    def __init__(self) -> None:
        self.done: dict[str, set[int]] = defaultdict(set)
        self.kept: set[int] = set()
        self.most_kept = 0
        self.summed_at = 0.0
        self.last_forward = self.last_input = self.last_back = -1
        self.is_changed = self.is_summed = True  # since the last gradient was added: by an update, by a sum
        self.n_updates = self.n_back = 0
        self.reads: dict[int, int] = {}  # of each item of the program, the version
        self.most_versions = 1

    def note_update(self) -> None:
        """Count the versions from the oldest that is still to be read, by the first microbatch that is not back, to the newest."""
        self.n_updates, self.is_changed = self.n_updates + 1, True
        oldest = self.reads.get(self.n_back, self.n_updates)
        self.most_versions = max(self.most_versions, self.n_updates - oldest + 1)

    def note_gradient(self, item: int) -> None:
        """Let go of a microbatch that is back."""
        self.kept.discard(item)
        self.last_back, self.n_back = item, self.n_back + 1
        self.is_changed = self.is_summed = False
