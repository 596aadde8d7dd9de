"""Give a plain loop of a test what a job trains on: its rows, its network and its order, from the parts that read and build alone."""

import numpy as np

from mpidml.data.readers import read
from mpidml.data.sampler import Sampler
from mpidml.data.split import hold_out
from mpidml.nn.models import build


def rows_of(job):
    """Return the training rows of a job, (n, features) in float64 with mean 0 and deviation 1, and their answers."""
    raw = read(job.data)
    train_ids, _ = hold_out(len(raw.x), job.hold_out, job.seed)
    x, y = raw.x[train_ids].reshape(len(train_ids), -1).astype(np.float64), raw.y[train_ids]
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation == 0, 1, deviation), y


class Plain:
    """Find gradients of a job's batches on one rank."""

    def __init__(self, job):
        self.x, self.y = rows_of(job)
        self.net = build("mlp", self.x.shape[1], 10, job.hidden, job.activation, dtype="float64", backend="numpy")
        self.sampler = Sampler(len(self.x), job.batch, 1, job.seed)

    def gradient(self, clock, weights):
        """Return the gradient of the batch of a clock at `weights`."""
        rows, g = self.sampler.indices(clock, 0), np.zeros(self.net.n_params)
        step = self.net.bind(len(rows), weights, g)
        step.x[...], step.y[...] = self.x[rows], self.y[rows]
        step.run(1 / len(rows))
        return g
