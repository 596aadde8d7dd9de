"""Run the CUDA kernels of layers (normalised, by rows, sparse, cut over ranks) in several orders of threads; break each, and see that it is noticed."""

import functools

import numpy as np
import pytest
from mpidml_kernels import csr, dense, launch, loss, norm, rows, split, update
from mpidml_kernels.csr import gpu as csr_on_gpu
from mpidml_kernels.norm import gpu as norm_on_gpu
from mpidml_kernels.rows.gpu import sort

from tests.kernels.test_gpu import REFERENCE, assert_noticed, orders, types
from tests.kernels.test_kernels import CPU, compare, run, sparse_rows
from tests.shim import cupy_double
from tests.shim.backend import ORDERS, on_shim

FAMILIES = [norm, rows, csr, split]
BENEATH = [update, dense, loss]
"""Of which kernels are used."""
N, N_ROWS = 37, 13
on_device = functools.cache(lambda order: on_shim(order, *BENEATH, *FAMILIES))


def case(name, m, dtype=np.float32):
    """Return arguments for m rows of a kernel: of 37 values, of a table of 13 rows, one of which half of the entries name."""
    random = np.random.default_rng(m)
    x, d, out = random.standard_normal((m, N)).astype(dtype), random.standard_normal((m, N)).astype(dtype), np.full((m, N), np.nan, dtype)
    gain, bias, weights = (random.uniform(0.5, 2, n).astype(dtype) for n in (N, N, N + 5))
    ids, table = np.where(np.arange(m) % 2, random.integers(0, N_ROWS, m), 5), random.standard_normal((N_ROWS, N)).astype(dtype)
    codes = np.ascontiguousarray(
        np.stack([random.standard_normal(m), np.minimum(ids, 6), random.standard_normal(m), random.integers(0, 6, m)], axis=1), dtype
    )
    embedding = codes, np.array([0, 2]), np.array([1, 3]), np.array([0, 7])
    wide = random.standard_normal((m, 2 + 2 * N)).astype(dtype)
    stats, y, sums = np.stack([x.mean(axis=1), 1 + x.std(axis=1)], axis=1), np.arange(m) % (N + 5), random.uniform(0.5, 2, (3, m))
    (starts, columns, values), _ = sparse_rows(m + 2, 50, dtype, "random")
    columns += 50 * (np.repeat(np.arange(m + 2), np.diff(starts)) // 100).astype(np.int32)  # so that not all columns occur early
    n_columns = 50 * (m // 100 + 1) + 50
    middle = starts[1:-1], columns, values  # rows of a slice: the values of others lie before and behind
    listed = random.integers(0, m + 2, m)
    n_taken = int((starts[listed + 1] - starts[listed]).sum())
    taken = np.full(m + 1, -7), np.full(n_taken, 2_000_000_000, np.int32), np.full(n_taken, np.nan, dtype)
    low = x - dtype(5)
    low[::10, 3] = np.nan
    return {
        "layer_norm": (x, gain, bias, 0.1, np.full((m, 2), np.nan, dtype), out),
        "layer_norm_backward": (d, x, stats, gain, np.full(N, np.nan, dtype), np.full(N, np.nan, dtype)),
        "take": (table, ids, out),
        "put_rows": (random.standard_normal((m + 3, N)).astype(dtype), random.permutation(m + 3)[:m], d),
        "add_rows": (table, ids, d),
        "embed": (*embedding, table, np.full_like(wide, np.nan)),
        "embed_backward": (wide, *embedding, np.full_like(table, np.nan)),
        "embed_part": (*embedding, 4, table[4:9], np.full_like(wide, np.nan)),
        "embed_part_backward": (wide, *embedding, 4, np.full_like(table[4:9], np.nan)),
        "csr_matmul": (*middle, random.standard_normal((n_columns, N)).astype(dtype), out),
        "csr_matmul_backward": (*middle, d, random.standard_normal((n_columns, N)).astype(dtype)),
        "csr_take": (starts, columns, values, listed, np.full(n_columns, -1, np.int32), np.full(n_columns, -7), *taken),
        "dropout_part": (x, np.arange(m) * 3_000_000_019, np.array([0x9ABC00001234], np.uint64), 0.3, 3),
        "largest_of_rows": (low, np.full(m, np.nan, dtype)),
        "xent_part_sums": (x, y, 3, x.max(axis=1), weights, np.full((3, m), np.nan)),
        "xent_part": (np.exp(x), y, 3, sums, weights, 0.1, 0.25),
    }[name]


SORTED = {"add_rows", "embed_backward", "embed_part_backward", "csr_matmul_backward", "csr_take"}
"""Sort or number entries over several tiles or blocks; of the others each row, or eight, has a block of its own, and 70 rows have all that 1,100 have."""
KERNELS = [name for family in FAMILIES for name in family.LAWS]


@orders
@types
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_layers_agree_with_their_references(name, dtype, order):
    for m in (0, 1, 33, 600 if name in SORTED else 70):
        compare(name, case(name, m, dtype), dtype, n_terms=8, at_least=1.0, backends=[CPU, on_device(order)])


def take_few_blocks(monkeypatch):
    for module in (launch, norm_on_gpu, csr_on_gpu):
        monkeypatch.setattr(module, "MOST_BLOCKS", 2)


@types
@pytest.mark.parametrize("name", KERNELS)
def test_few_blocks_go_over_all_rows(name, dtype, monkeypatch):
    take_few_blocks(monkeypatch)
    compare(name, case(name, 1100 if name in SORTED else 70, dtype), dtype, n_terms=8, at_least=1.0, backends=[CPU, on_device("shuffle")])


@types
@pytest.mark.parametrize("name", ["add_rows", "embed_backward", "embed_part_backward", "take", "put_rows", "csr_take"])
def test_rows_add_up_to_the_bits_of_the_reference(name, dtype):
    given = case(name, 600, dtype)
    result, after = run(REFERENCE, name, given)
    for order in ORDERS:
        got, found = run(on_device(order), name, given)
        assert got == result and all(a.tobytes() == b.tobytes() for a, b in zip(found, after, strict=True))


@pytest.mark.parametrize("name", ["layer_norm_backward", "csr_matmul_backward", "xent_part_sums", "xent_part"])
def test_sums_have_the_same_bits_whatever_the_order_of_threads(name):
    (result, after), *others = (run(on_device(order), name, case(name, 257)) for order in ORDERS)
    assert all(got == result and all(a.tobytes() == b.tobytes() for a, b in zip(found, after, strict=True)) for got, found in others)


@orders
@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 511, 1025, 3000])
def test_keys_are_sorted(n, order):
    keys = np.random.default_rng(n).permutation(n) * 3_000_000_019 - 7
    gpu = launch.Gpu(cupy_double)
    for given in (keys, np.sort(keys), np.sort(keys)[::-1].copy()):
        with cupy_double.threads(order):
            gpu.scratch("keys", n, "i8").set(given)
            assert np.array_equal(sort(gpu, n, "f4").get(), np.sort(keys))


def test_a_kernel_without_real_arguments_has_to_be_told_its_type():
    gpu = launch.Gpu(cupy_double)
    with pytest.raises(TypeError, match="sort_tiles: none of the arguments is a device array of real numbers"):
        gpu.launch("rows", "sort_tiles", 1, launch.BLOCK, gpu.scratch("keys", 3, "i8"), 3)


ASTRAY = "out-of-bounds|race on|read-only"
"""Said of what goes beyond the neighbouring element, and may meet another array."""
MUTANTS = [
    ("norm", "layer_norm", "squares += away * away;", "squares += row[j] * row[j];", "differs"),
    ("norm", "layer_norm", "(real)n + (real)eps", "(real)n", "differs"),
    ("norm", "layer_norm", "if (threadIdx.x == 0) {", "{", "race on stats"),
    ("norm", "layer_norm_backward", "own_gain[j] = own_bias[j] = 0;", "own_gain[j] = 0;", "differs"),
    ("norm", "layer_norm_backward", "i += gridDim.x", "i += 1", "race on"),
    ("norm", "layer_norm_backward", "along = block_sum(along, scratch) / (real)n;", "along /= (real)n;", "differs"),
    ("norm", "layer_norm_backward", "own_gain = dgain + blockIdx.x * n", "own_gain = dgain", "race on dgain"),
    ("rows", "take", "table[ids[i] * n + j]", "table[i * n + j]", "out-of-bounds"),
    ("rows", "put_rows", "table[ids[i] * n + j] = rows", "table[i * n + j] = rows", "differs"),
    ("rows", "put_rows", "= rows[i * n + j]", "= rows[ids[i] * n + j]", ASTRAY + "|differs"),
    ("rows", "embed", "table[row * n + within - c * n]", "table[row * n + within]", "out-of-bounds"),
    ("rows", "embed", "c = within < 0 ? 0 : within / n", "c = within / n", None),  # not broken: no row is read there
    ("rows", "embed_part", "row >= 0 && row < n_rows ? table", "true ? table", ASTRAY),
    ("rows", "embed_backward", "(i << low) + c;", "(i << low);", "differs"),
    ("rows", "embed_backward", "(e && keys[e - 1] >> bits == row)", "false", "race on table"),
    ("rows", "embed_backward", "* width + before", "* width", "differs"),
    ("rows", "embed_part_backward", "(row >= 0 && row < n_rows ? row : n_rows)", "row", ASTRAY),
    ("rows", "embed_part_backward", "row >= n_rows ||", "", "out-of-bounds"),
    ("rows", "add_rows", "(ids[i] << bits) + i", "(ids[i] << bits) + n - 1 - i", "differs"),
    ("rows", "add_rows", "const Index end = end_of_run(keys, e, n_keys, bits);", "const Index end = e + 1;", "differs"),
    ("rows", "add_rows", "real total = table[row * n + j];", "real total = 0;", "differs"),
    ("rows", "add_rows", "__syncthreads();  // all have found their places", "", "race on __shared"),
    ("rows", "add_rows", "if (i < n_here) tile[place] = key;\n        __syncthreads();", "if (i < n_here) tile[place] = key;", "race on __shared"),
    ("rows", "add_rows", "other + run < n ? other + run : n", "other + run", "uninitialised __shared__|out-of-bounds"),
    ("rows", "add_rows", "(i & ~run) + first", "i + first", ASTRAY),
    ("rows", "add_rows", "merged[merged_place(keys, i, run, n)]", "merged[i]", "race on table"),
    ("device", "add_rows", "while (step /= 2)", "while (step /= 4)", "differs"),
    ("device", "add_rows", "if (last + step < n && keys", "if (keys", "out-of-bounds"),
    ("device", "csr_matmul_backward", "values[middle] < key", "values[middle] <= key", "differs"),
    ("csr", "csr_matmul", "Index j = starts[i]", "Index j = starts[i] + 1", "differs"),
    ("csr", "csr_matmul", "columns[j] * n + c", "columns[j] + c", "differs"),
    ("csr", "csr_matmul_backward", "i >= 0 && i < m ? (Index)columns[j] : n_columns", "(Index)columns[j]", "out-of-bounds"),
    ("csr", "csr_matmul_backward", "d[rows[j] * n + c]", "d[j * n + c]", "out-of-bounds"),
    ("csr", "csr_matmul_backward", "(e && keys[e - 1] >> bits == column)", "false", "race on g"),
    ("csr", "csr_take", "atomicMin((unsigned*)number + column, (unsigned)at);", "number[column] = (int)at;", "race on number"),
    ("csr", "csr_take", "(unsigned*)number + column, (unsigned)at", "number + column, (int)at", "out-of-bounds"),
    ("csr", "csr_take", "atomicMin(", "atomicMax(", "out-of-bounds"),
    ("csr", "csr_take", "Index before = blockIdx.x ? counts[blockIdx.x - 1] : 0, total", "Index before = 0, total", "race on ids"),
    ("csr", "csr_take", "number[out_columns[at]] = -1;", "", "differs"),
    ("csr", "csr_take", "if (lane == 31) scratch[warp] = v;", "scratch[warp] = v;", "race on __shared"),
    ("csr", "csr_take", "warp ? before + v : v", "before + v", "race on out_columns"),
    ("csr", "csr_take", "at = out_starts[i] + threadIdx.x", "at = threadIdx.x", "race on out_columns"),
    ("csr", "csr_take", "found[firsts[at]]", "firsts[at]", "differs"),
    ("csr", "csr_take", "count += firsts[at] == at;", "", "race on ids"),
    ("csr", "csr_take", "i ? starts[rows[i - 1] + 1] - starts[rows[i - 1]] : 0", "starts[rows[i] + 1] - starts[rows[i]]", "out-of-bounds"),
    ("split", "dropout_part", "(unsigned)(first + j)", "(unsigned)j", "differs"),
    ("split", "largest_of_rows", "row[j] > most ? row[j] : most", "larger(row[j], most)", "differs"),
    ("split", "largest_of_rows", "(real)__int_as_float(0xff800000)", "0", "differs"),
    ("split", "xent_part_sums", "if (label < 0 || label >= n) sums[m + i] = 0;", "", "differs"),
    ("split", "xent_part_sums", "weights[first + j]", "weights[j]", "differs"),
    ("split", "xent_part_sums", "sums[m + i] = (double)away", "sums[m + i] = (double)e", "differs"),
    ("split", "xent_part", "own = block_sum(own, scratch);", "", "differs"),
    ("split", "xent_part", "j == label ?", "j == y[i] ?", "differs"),
    ("split", "xent_part", "if (threadIdx.x == 0) losses", "losses", "race on losses"),
    ("split", "xent_part", "spread * total_weight[0]", "spread * (double)n", "differs"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_broken_kernel_of_layers_is_noticed(where, name, old, new, said, monkeypatch):
    assert_noticed(monkeypatch, [*BENEATH, *FAMILIES], case(name, 600 if name in SORTED else 70), where, name, old, new, said)


OF_FEW_BLOCKS = [
    ("norm", "layer_norm_backward", "i += gridDim.x", "i += 2 * gridDim.x", "differs"),
    ("rows", "add_rows", "FOR_EACH(i, n) merged", "for (Index i = (Index)blockIdx.x * 256 + threadIdx.x; i < n; i = n) merged", "race on merged"),
    ("csr", "csr_take", "if (i < n) values[i] = before + sum;\n        before += total;", "if (i < n) values[i] = before + sum;", "race on out_columns"),
    ("csr", "csr_take", "        }\n        before += total;", "        }", "differs"),
    ("csr", "csr_take", "i += (Index)gridDim.x * 8", "i += (Index)gridDim.x * 16", "out-of-bounds"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), OF_FEW_BLOCKS, ids=range(len(OF_FEW_BLOCKS)))
def test_a_block_that_does_not_take_all_its_rows_is_noticed(where, name, old, new, said, monkeypatch):
    take_few_blocks(monkeypatch)
    assert_noticed(monkeypatch, [*BENEATH, *FAMILIES], case(name, 1100 if name in SORTED else 70), where, name, old, new, said)


def test_every_kernel_of_layers_is_broken_once():
    assert {name for _, name, _, _, said in MUTANTS if said} == set(KERNELS)
