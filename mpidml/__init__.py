"""Train models across MPI ranks. Importing mpidml starts neither MPI nor a compiler.

    mpidml.train(mpidml.Job(data="digits", sync="ssp:1"))          what `python -m mpidml train` does
    mpidml.compare({"sync": ["bsp", "ssp:3"], "target": "0.95"})    the same job under several policies, in one table
    mpidml.simulate({"sync": "ssp:3", "workers": 10_000})           the same on virtual clocks
    mpidml.plan({"ranks": 64, "hosts": 8})                          how to run a job: grid, schedule, microbatches
    mpidml.evaluate("runs/x")                                       how good the run's model is on its test rows, or on others
    mpidml.predict("runs/x", data="new.csv", out="of_new.csv")      what it says of rows without labels
    mpidml.run_tables(main, {"w": (1000, 16)}, sync="ssp:3")       pull, push and clock from a program of your own
    mpidml.Gradients({"w": (784, 10)}, collective="ring")          sum gradients of a program of your own over the ranks
    mpidml.MLPClassifier(sync="ssp:1").fit(X, y).predict(X)        scikit-learn's conventions (and MLPRegressor), on all ranks
    mpidml.to_torch(network, values)                                a torch.nn.Sequential with the same weights (and from_torch back)
    mpidml.to_onnx("runs/...", "model.onnx")                       what `python -m mpidml export` does
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidml.compare import compare
    from mpidml.core.errors import UserError
    from mpidml.core.job import Job
    from mpidml.evaluate import evaluate
    from mpidml.interop.onnx_file import to_onnx as to_onnx
    from mpidml.interop.pytorch import from_torch as from_torch
    from mpidml.interop.pytorch import to_torch as to_torch
    from mpidml.ml.mlp_classifier import MLPClassifier as MLPClassifier
    from mpidml.ml.mlp_regressor import MLPRegressor as MLPRegressor
    from mpidml.plan import plan
    from mpidml.predict import predict
    from mpidml.runtime.gradients import Gradients
    from mpidml.runtime.tables import run_tables
    from mpidml.simulate import simulate
    from mpidml.strategies.base import train

__version__ = "0.1.0"
# What needs an extra is left out, so that * can be imported without.
__all__ = ["Gradients", "Job", "UserError", "compare", "evaluate", "plan", "predict", "run_tables", "simulate", "train"]

_WHERE = {
    "Gradients": "mpidml.runtime.gradients",
    "Job": "mpidml.core.job",
    "UserError": "mpidml.core.errors",
    "MLPClassifier": "mpidml.ml.mlp_classifier",
    "MLPRegressor": "mpidml.ml.mlp_regressor",
    "from_torch": "mpidml.interop.pytorch",
    "run_tables": "mpidml.runtime.tables",
    "to_onnx": "mpidml.interop.onnx_file",
    "to_torch": "mpidml.interop.pytorch",
    "train": "mpidml.strategies.base",
}
_WHERE |= {name: f"mpidml.{name}" for name in ("compare", "evaluate", "plan", "predict", "simulate")}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name in _WHERE:
        import importlib

        found = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = found  # the import has put the module there, which some functions share their name with
        return found
    raise AttributeError(f"module 'mpidml' has no attribute '{name}'")
