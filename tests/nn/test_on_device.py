"""Hold passes on a device to the CPU's: the kernels' CUDA C by a double of CuPy whose streams do no more than what waits order."""

import inspect
import itertools
import pickle
import textwrap

import numpy as np
import pytest

from mpidml.nn import on_device
from mpidml.nn.heads import Head
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.on_device import OnDevice
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import ALONE, Edges, Memory
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
N_FEATURES, M = 6, 5


@pytest.fixture(params=PLACES)
def how(request):
    """Streams that do as little as they may, and all at once, and a GPU's."""
    with placed(request.param):
        yield request.param


def heads():
    return [
        Head("a", (Dense(),), 3, make_loss("cross_entropy"), 1.0, (0,), True, 0),
        Head("b", (Dense(4, "gelu"), Dense()), 2, make_loss("squared_error"), 0.5, (1, 2), False, 3),
    ]


NETS = {
    "softmax": lambda: ([Dense()], "cross_entropy", ()),
    "mlp": lambda: ([Dense(7, "gelu"), Dropout(0.3), Dense(5, "tanh"), Dense()], "cross_entropy", ()),
    "squares": lambda: ([Dense(7, "relu"), Dense()], "squared_error", ()),
    "hinge": lambda: ([Dense(4, "softplus"), Dense()], "hinge:0.5", ()),
    "heads": lambda: ([Dense(7, "relu"), Dropout(0.2)], "cross_entropy", heads()),
    "norm": lambda: ([Dense(7, "relu"), LayerNorm(), Dense()], "cross_entropy", ()),
    "codes": lambda: ([Embedding([1, 4], 3, rows=4), Dense(5, "tanh"), Dense()], "cross_entropy", ()),
}


def pair(name, dtype):
    """Return a network on the CPU and the same on the device."""
    nets = []
    for at in range(2):
        layers, loss, ends = NETS[name]()
        nets.append(connect(layers, "test", N_FEATURES, 5 if ends else 3, make_loss(loss), dtype, "numpy", ends))
        if at:
            nets[-1].device = device()
    return nets


def rows_of(net, seed, n=40):
    random = np.random.default_rng(seed)
    x, labels = random.normal(size=(n, N_FEATURES)).astype(net.dtype), random.integers(3, size=n)
    x[:, [1, 4]] = random.integers(4, size=(n, 2))  # codes
    return x, np.column_stack([labels, random.normal(size=(n, 2))]) if net.given_heads else labels


def fill(step, data, rows, salt):
    x, y = data
    step.x[...] = x[rows]
    step.load(y, rows)
    step.ids[...], step.salt[0] = rows + 100, salt


def trained(net, progress=False, sizes=(M, M, 3, M), slots=(0,)):
    """Make steps with different rows, sizes, slots and weights of two arrays; return losses, gradients, and the weights."""
    data, found = rows_of(net, 1), []
    ws, g = [net.init(3), net.init(3)], np.empty(net.n_params, net.dtype)
    for k, (m, slot) in enumerate(zip(sizes, itertools.cycle(slots), strict=False)):
        step, rows = net.bind(m, ws[k % 2], g, slot), np.arange(7 * k, 7 * k + m) % 40
        fill(step, data, rows, k)
        g[:] = np.nan
        reports, seen = [], []

        def report(lo, hi, reports=reports, seen=seen, g=g):
            reports.append((lo, hi))
            seen.append(g[lo:hi].copy())

        loss = step.run(1 / m, report if progress else None)
        if progress:
            assert [each for each in reports if each != (0, 0)] == net.parts()
            assert all(np.array_equal(early, g[lo:hi]) for (lo, hi), early in zip(reports, seen, strict=True)), "reported before it was there"
        fill(step, (np.full_like(data[0], 1e6), data[1]), rows, 0)  # what was given may be overwritten once a pass has ended
        found.append((loss, g.copy()))
        for w in ws:
            w -= net.dtype.type(0.1) * g
    return found, ws[0]


def near(a, b, dtype):
    return np.abs(np.asarray(a) - b).max() <= TOLERANCE[str(dtype)] * max(1.0, np.abs(b).max())


def agree(got, expected, dtype):
    return all(near(x, y, dtype) and near(g, h, dtype) for (x, g), (y, h) in zip(got[0], expected[0], strict=True)) and near(got[1], expected[1], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("progress", [False, True], ids=["silent", "progress"])
@pytest.mark.parametrize("name", NETS)
def test_a_pass_on_the_device_is_one_on_the_cpu(name, progress, dtype, how):
    here, there = pair(name, dtype)
    assert agree(trained(there, progress, slots=(0, 1)), trained(here, progress, slots=(0, 1)), dtype)
    assert isinstance(next(iter(there._steps.values())), OnDevice)


def test_a_wide_first_layer_is_reported_in_two_parts(how):
    layers = [[Dense(500, "relu"), Dense()] for _ in range(2)]
    here, there = (connect(of, "test", 700, 3, make_loss("cross_entropy"), "float32", "numpy") for of in layers)
    there.device = device()
    found = []
    for net in (here, there):
        net.split = True
        g, parts = np.empty(net.n_params, np.float32), []
        step = net.bind(2, net.init(1), g)
        step.x[...], step.y[...] = 0.01, [0, 2]
        step.run(1.0, lambda lo, hi, parts=parts: parts.append((lo, hi)) if hi else None)
        assert parts == net.parts() and len(parts) == 3
        found.append(g)
    assert near(found[1], found[0], np.dtype("float32"))


@pytest.mark.parametrize("how", ["lazy", "eager"], indirect=True)
def test_a_pass_without_reports_waits_once(how):
    _, there = pair("heads", "float64")
    step = there.bind(M, there.init(1), np.empty(there.n_params))
    fill(step, rows_of(there, 1), np.arange(M), 0)
    step.run(1.0)
    before = cupy_double.n_waits
    step.run(1.0)
    assert cupy_double.n_waits == before + 1
    step.run(1.0, lambda lo, hi: None)
    assert cupy_double.n_waits == before + 2, "asking whether an event is done is no wait"


def test_a_pass_without_rows_loses_nothing(how):
    _, there = pair("mlp", "float64")
    there.bind(M, there.init(1), np.empty(there.n_params))
    step = there.bind(0, there.init(1), g := np.full(there.n_params, np.nan))
    assert step.run(1.0) == 0 and not g.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETS)
def test_scores_and_outputs_are_the_cpu_s(name, dtype, how):
    here, there = pair(name, dtype)
    w, (x, y) = here.init(2), rows_of(here, 3)
    assert near(there.predict(w, x, 7), here.predict(w, x, 7), dtype)
    outputs = np.empty((len(x), here.n_outputs), here.dtype)
    for got, expected in zip(there.scored(w, x, y, 7, outputs), here.scored(w, x, y, 7), strict=True):
        assert [n for _, n in got] == [n for _, n in expected] and near([a for a, _ in got], [a for a, _ in expected], dtype)
    assert near(outputs, here.predict(w, x, 7), dtype)
    assert there.score(w, x[:0], y[:0]) == (0, 0)


# ---- stages


def staged(net, cuts, halves=False, stays=False, n_items=4, n_slots=2):
    """Run microbatches through stages that end at `cuts`, two in flight, whose gradients add up; return the losses, the sums, and scores.

    `stays`: weights and gradients are the device's.
    """
    data, bounds = rows_of(net, 1), [0, *cuts, n_cuts(net)]
    stages = [Stage(net, lo, hi, s == 0, s == len(cuts)) for s, (lo, hi) in enumerate(itertools.pairwise(bounds))]
    between = [np.zeros((3, n_slots, M, of.n_out), net.dtype) for of in stages[:-1]]
    ws, totals, summands, memory = ([make(of) for of in stages] for make in (
        lambda of: of.init(3), lambda of: np.full(of.n_params, np.nan, net.dtype), lambda of: np.full(of.n_params, np.nan, net.dtype),
        lambda of: [Memory(M, net.backend) for _ in range(n_slots)],
    ))  # fmt: skip
    kernels = net.device.kernels if stays else net.backend
    ws, totals, summands = ([kernels.here(a) for a in arrays] for arrays in (ws, totals, summands))
    losses, steps = [], {}

    def bound(s, item):
        slot = item % n_slots
        if (s, slot, item > 0) in steps:
            return steps[s, slot, item > 0]
        x, dx = (between[s - 1][0, slot], between[s - 1][1, slot]) if s else (None, None)
        out, dy = (between[s][0, slot], between[s][1, slot]) if s < len(cuts) else (None, None)
        g, total = (summands[s], totals[s]) if item else (totals[s], None)
        step = steps[s, slot, item > 0] = stages[s].bind(M, ws[s], g, memory[s][slot], Edges(x, out, dy, dx), total)
        return step

    def forward(item):
        rows = np.arange(5 * item, 5 * item + M)
        for s, own in enumerate(stages):
            step = bound(s, item)
            if not s:
                step.x[...] = data[0][rows]
            if own.random:
                step.ids[...], step.salt[0] = rows, 7
            if own.is_last:
                step.load(data[1], rows)
            step.go()
            if not s:
                step.x[...] = 1e6 if isinstance(step, OnDevice) else step.x  # once it was taken
            if own.is_last:
                losses.append(step.lose(0.2))

    def back(item):
        for s, own in reversed(list(enumerate(stages))):
            step = bound(s, item)
            early, late = own.gradient_parts(adding=True)
            (step.go_back_to_input if halves else step.go_back)()
            if halves:
                step.go_back_to_weights()
            for part in (*early, *late) if item else ():
                kernels.add(totals[s][part], summands[s][part])

    for item in range(n_items):  # one forward, one backward
        forward(item)
        if item:
            back(item - 1)
    back(n_items - 1)
    scores, x = [], data[0][:M]
    for s, own in enumerate(stages):
        out = between[s][2, 0] if s < len(cuts) else None
        room = Memory(M + 2, net.backend)
        own.bring(ws[s], room)
        thunks, outs = own.scoring(M, ws[s], room, x, out)
        for function, arguments in thunks:
            function(*arguments)
        x = out
    for head, each in zip(net.heads, outs, strict=True):
        scores += head.judge(net.backend, each, head.answers(data[1][:M]))
    return losses, np.concatenate([kernels.host(total) for total in totals]), scores


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "cuts"), [("mlp", ()), ("mlp", (1,)), ("mlp", (2, 3)), ("mlp", (0, 4)), ("heads", (1,)), ("squares", (1,))])
def test_stages_on_the_device_are_stages_on_the_cpu(name, cuts, dtype, halves, stays, how):
    here, there = pair(name, dtype)
    got, expected = staged(there, cuts, halves, stays), staged(here, cuts, halves)
    assert all(near(a, b, dtype) for a, b in zip(got, expected, strict=True))


# ---- what the waits are for


def broken(method, old, new):
    """Return a method of the step with a line of it replaced."""
    source = textwrap.dedent(inspect.getsource(getattr(OnDevice, method)))
    assert source.count(old) == 1, old
    found = {}
    exec(compile(source.replace(old, new), "broken", "exec"), vars(on_device), found)
    return found[method]


def of_network(net):
    return trained(net, progress=False)


def of_progress(net):
    return trained(net, progress=True)


def of_stages(net):
    losses, gradient, _ = staged(net, (1,))
    return [(loss, np.zeros(1)) for loss in losses], gradient


def of_stages_that_stay(net):
    losses, gradient, _ = staged(net, (1,), stays=net.device.kernels is not None)
    return [(loss, np.zeros(1)) for loss in losses], gradient


WAIT = "self.ended.synchronize()"
MUTANTS = {
    "of each range, before it is reported": ("run", "while not self.gpu.done(part.landed):", "while False:", of_progress),
    "of all copies, before the pass ends": ("run", WAIT, "pass", of_network),
    "of a stage's copies": ("_go_back", WAIT, "pass", of_stages),
    "of what came, before it may be overwritten": ("go", WAIT, "pass", of_stages),
    "of a stage's loss": ("lose", WAIT, "pass", of_stages),
    "of the copy of what goes back, where the gradient stays": ("_go_back", WAIT, "pass", of_stages_that_stay),
    "of that copy, for what it copies": ("_back", "self.gpu.copies.wait_event(part.made)", "pass", of_stages_that_stay),
    "of what came, where weights stay": ("go", WAIT, "pass", of_stages_that_stay),
    "of copies, for what they copy": ("_back", "self.gpu.copies.wait_event(part.made)", "pass", of_network),
    "of copies, for what is made by then": ("_back", "part.made.record()", "pass", of_network),
    "of the end, for copies": ("_end", "self.ended.record(self.gpu.copies)", "self.ended.record()", of_network),
    "weights brought anew": ("run", "self._put(self.came)", "self._put(self.came[:1])", of_network),
    "rows brought": ("run", "self._put(self.came)", "self._put(self.came[1:])", of_network),
    "labels brought": ("_lose", "self._put(self.learnt)", "pass", of_network),
    "the gradient of the output": ("go_back", "self._put(self.dy)", "pass", of_stages),
    "a sum to which is added": ("_take", "self.backend.add(self.total[of], self.landed[of])", "self.total[of] = self.landed[of]", of_stages),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_left_out_is_seen(name, monkeypatch):
    method, old, new, run = MUTANTS[name]
    here, there = pair("mlp", "float64")
    monkeypatch.setattr(OnDevice, method, broken(method, old, new))
    with cupy_double.streams("lazy"), cupy_double.threads("forward", checked=False), np.errstate(all="ignore"):
        try:
            assert not agree(run(there), run(here), "float64"), name
        except AssertionError as error:
            assert "reported before it was there" in str(error)


@pytest.mark.parametrize("run", [of_network, of_progress, of_stages, of_stages_that_stay])
def test_what_is_whole_passes_as_the_broken_would_have_to(run, how):
    here, there = pair("mlp", "float64")
    assert agree(run(there), run(here), "float64")


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("polls", [False, True])
def test_a_device_that_fails_ends_a_pass(resident, polls):
    """An event that will never come is not asked for ever: CuPy says of it what it says of one that has not come yet."""
    _, net = pair("mlp", "float64")
    kernels, asked = net.device.kernels, []
    w, g = (kernels.here(a) if resident else a for a in (net.init(1), np.empty(net.n_params)))

    def fails():
        raise cupy_double.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def progress(lo, hi):
        asked.append(lo)
        assert len(asked) < 1000, "it asks for ever"

    with cupy_double.streams("lazy"):
        step = net.bind(M, w, g)
        fill(step, rows_of(net, 1), np.arange(M), 3)
        cupy_double.get_current_stream()._give(fails)
        with pytest.raises(cupy_double.CUDARuntimeError, match="illegal memory access"):
            step.run(0.2, progress if polls else None)


def test_a_copy_of_the_network_computes_on_the_cpu(how):
    _, there = pair("mlp", "float64")
    again = pickle.loads(pickle.dumps(there))
    assert again.device.name == "cpu"
    x = rows_of(there, 3)[0]
    assert near(there.predict(there.init(1), x), again.predict(there.init(1), x), "float64")


def test_steps_of_a_slot_share_the_device_s_memory():
    _, there = pair("mlp", "float64")
    w, g = there.init(1), np.empty(there.n_params)
    one, other = there.bind(M, w, g), there.bind(3, w, g)
    assert one.landed is other.landed and one.step.w is other.step.w
    assert there.bind(M, w, g, slot=1).step.w is not one.step.w


def test_rows_that_are_filled_there_are_computed_with_and_the_gradient_of_the_first_output_can_be_had(how):
    here, there = pair("mlp", "float64")
    kernels, (x, *_), found = there.device.kernels, rows_of(here, 1), []
    for net, backend in ((here, here.backend), (there, kernels)):
        step = net.bind(M, backend.here(net.init(1)), backend.zeros(net.n_params, net.dtype))
        fill(step, rows_of(net, 1), np.arange(M), 3)
        if net is there:
            step.x[...] = np.nan  # what nobody brings
            backend.put(step.rows_there(), x[:M])
        found += [step.run(1.0), backend.host(step.delta).copy()]
    assert near(found[2], found[0], "float64") and near(found[3], found[1], "float64") and ALONE == (None,) * 4
