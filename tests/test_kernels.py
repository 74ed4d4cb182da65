"""The compiled loops, each against the same thing said in NumPy."""

import subprocess
import sys

import numpy as np
import pytest

from xmlib.index import kernels
from xmlib.ragged import offsets_of

LENGTHS = np.array([3, 0, 5, 1, 0, 7, 2])
B, T, C, H = len(LENGTHS), LENGTHS.sum(), 9, 8
OFFSETS = offsets_of(LENGTHS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[np.uint8, np.uint16, np.uint32])
def codes_T(request, rng):
    return rng.integers(0, C, T).astype(request.param)


@pytest.mark.parametrize("L", [32, 64])
def test_passages_are_scored_by_the_highest_byte_of_each_query_token(rng, codes_T, L):
    bytes_CL = rng.integers(0, 256, (C, L)).astype(np.uint8)
    some = np.array([5, 0, 1])
    score_N = np.empty(3, np.int32)
    kernels.approximate(some, OFFSETS, codes_T, bytes_CL, score_N)
    of = [bytes_CL[codes_T[OFFSETS[b] : OFFSETS[b + 1]]].astype(int) for b in some]
    assert score_N.tolist() == [of[0].max(axis=0).sum(), of[1].max(axis=0).sum(), -1]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 100])
def test_the_best_are_found_in_order_and_ties_go_to_the_earlier(rng, n):
    for score_B in (np.int32([4, 9, -1, 4, 9, 4, 0]), np.int32([-1, -1]), rng.integers(-1, 6, 50).astype(np.int32)):
        real = [b for b in np.argsort(-score_B, kind="stable") if score_B[b] >= 0]
        assert kernels.best(score_B, n).tolist() == sorted(real[:n])


def rounded(vectors_NH):
    """As `paired` keeps them."""
    pairs, unit = kernels.paired(vectors_NH)
    return unit * pairs.view(np.int16)


def centroid_table(centroids_CH, q_HL, factor):
    table_CL = np.empty((len(centroids_CH), q_HL.shape[1]), np.int16)
    (centroids_CP, unit), (q_PL, q_unit) = kernels.paired(centroids_CH), kernels.paired_query(q_HL.T)
    rows_N = np.arange(len(centroids_CH))
    kernels.centroid_table(centroids_CP, rows_N, q_PL, unit * q_unit * np.float32(factor), table_CL)
    return table_CL


def to_bytes(table_CL, low_L):
    """All rows as bytes, and the step."""
    rows_N, high_L = np.arange(len(table_CL)), np.empty_like(low_L)
    bytes_CL = np.empty(table_CL.shape, np.uint8)
    step = kernels.byte_range(table_CL, rows_N, low_L, high_L)
    kernels.to_bytes(table_CL, rows_N, low_L, high_L, step, bytes_CL)
    return bytes_CL, step


def test_vectors_in_pairs_keep_their_products(rng):
    one_NH, other_NH = (rng.standard_normal((50, 128)).astype(np.float32) for _ in range(2))
    (one, unit), (other, other_unit) = kernels.paired(one_NH), kernels.paired(other_NH)
    products = one.view(np.int16).astype(np.int64) @ other.view(np.int16).astype(np.int64).T
    assert abs(products).max() < 2**31
    longest = np.linalg.norm(one_NH, axis=1).max() * np.linalg.norm(other_NH, axis=1).max()
    np.testing.assert_allclose(unit * other_unit * products, one_NH @ other_NH.T, atol=1e-4 * longest)
    assert not kernels.paired(np.zeros((2, 4), np.float32))[0].any()


@pytest.mark.parametrize("n_centroids", [1, 2, 9])
def test_products_with_centroids_are_rounded_down_to_whole_steps(rng, n_centroids):
    centroids_CH = rng.standard_normal((n_centroids, H)).astype(np.float32)
    q_HL = rng.standard_normal((H, 64)).astype(np.float32)
    table_CL = centroid_table(centroids_CH, q_HL, 1000)
    np.testing.assert_allclose(table_CL, 1000 * (rounded(centroids_CH) @ rounded(q_HL.T).T), atol=1.01)


def test_bytes_keep_the_order_and_share_one_step(rng):
    table_CL = rng.integers(-20_000, 20_000, (C, 32)).astype(np.int16)
    low_L = rng.integers(-5000, 0, 32).astype(np.int16)
    bytes_CL, step = to_bytes(table_CL, low_L)
    above = np.maximum(table_CL.astype(int) - low_L, 0)
    assert bytes_CL.max() == 254
    assert step == 255 * 32768 // above.max()
    assert (bytes_CL == np.floor(above * step / 32768)).all()


def test_bytes_hold_the_widest_products_that_fit(rng):
    table_CL = np.int16([[-32768] * 32, [0] * 32, [32767] * 32])
    bytes_CL, _ = to_bytes(table_CL, np.full(32, -3000, np.int16))
    assert bytes_CL[:, 0].tolist() == [0, 0, 254]


def test_rows_that_come_later_fill_the_same_range_of_bytes_and_leave_other_rows_alone(rng):
    table_CL = rng.integers(-20_000, 20_000, (C, 32)).astype(np.int16)
    table_CL[7] = 30_000  # more than any of the first
    first_N, later_N = np.arange(0, C, 2), np.array([7, 3])
    low_L, high_L, bytes_CL = np.zeros(32, np.int16), np.empty(32, np.int16), np.full((C, 32), 99, np.uint8)
    step = kernels.byte_range(table_CL, first_N, low_L, high_L)
    for rows_N in (first_N, later_N):
        kernels.to_bytes(table_CL, rows_N, low_L, high_L, step, bytes_CL)
    wanted = np.floor(np.clip(table_CL.astype(int), 0, high_L) * int(step) / 32768)
    done_N = np.concatenate([first_N, later_N])
    assert (bytes_CL[done_N] == wanted[done_N]).all() and (bytes_CL[7] == wanted[::2].max(axis=0)).all()
    assert (np.delete(bytes_CL, done_N, axis=0) == 99).all()


@pytest.mark.parametrize(("T", "n_centroids"), [(1, 1), (31, 2), (64, 3), (100, 300)])
def test_the_nearest_centroid_is_the_first_of_those_with_the_largest_product(rng, T, n_centroids):
    x_TH = rng.standard_normal((T, H)).astype(np.float32)
    centroids_CH = rng.integers(-2, 3, (n_centroids, H)).astype(np.float32)  # some are the same
    code_T = np.empty(T, np.int32)
    kernels.nearest(x_TH, centroids_CH, code_T)
    first = {tuple(centroid): c for c, centroid in reversed(list(enumerate(centroids_CH.tolist())))}
    best_T = (x_TH.astype(np.float64) @ centroids_CH.T).argmax(axis=1)
    assert code_T.tolist() == [first[tuple(centroids_CH[c].tolist())] for c in best_T]


def test_what_is_missing_is_named_once_and_known_from_then_on():
    known_C = np.zeros(64, np.uint8)
    known_C[[0, 40]] = 1
    assert kernels.missing(np.array([50, 0, 1, 50, 40, 1, 31], np.uint16), known_C).tolist() == [1, 31, 50]
    assert np.flatnonzero(known_C).tolist() == [0, 1, 31, 40, 50] and known_C.max() == 1
    assert kernels.missing(np.array([50, 1], np.uint16), known_C).tolist() == []


@pytest.mark.parametrize(("L", "S"), [(32, 32), (32, 3), (64, 40)])
@pytest.mark.parametrize("margin", [0, 20, 255])
def test_tokens_contend_that_come_near_the_best_for_any_query_token(rng, codes_T, L, S, margin):
    bytes_CL = rng.integers(0, 255, (C, L)).astype(np.uint8)
    bytes_CL[:, S:] = 0
    some, row_K = np.array([5, 1, 0, 3]), np.empty(T, np.int64)
    offsets_N1 = kernels.contenders(some, OFFSETS, codes_T, bytes_CL, S, np.uint8(margin), row_K)
    for n, b in enumerate(some):
        rows = np.arange(OFFSETS[b], OFFSETS[b + 1])
        of_TS = bytes_CL[codes_T[rows], :S].astype(int)
        wanted = rows[(of_TS >= of_TS.max(axis=0, initial=0) - margin).any(axis=1)]
        assert row_K[offsets_N1[n] : offsets_N1[n + 1]].tolist() == wanted.tolist()


def test_reranking_adds_centroid_and_residual_and_applies_the_gain(rng, codes_T):
    centroids_CH = rng.standard_normal((C, H)).astype(np.float32) / 3
    codebook_RWd = rng.standard_normal((2, 256, 4)).astype(np.float32) / 9
    residuals_TR = rng.integers(0, 256, (T, 2)).astype(np.uint8)
    gains_T, levels = rng.integers(0, 16, T).astype(np.uint8), np.linspace(0.8, 1.2, 16)
    q_HL = rng.standard_normal((H, 32)).astype(np.float32) / 3
    factor = np.float32(4000)
    table_CL, table_RWL = centroid_table(centroids_CH, q_HL, factor), np.empty((2, 256, 32), np.int16)
    kernels.residual_table(codebook_RWd, q_HL, factor, table_RWL)
    gain_of, score_N = np.rint(levels * 2**15).astype(np.int32), np.empty(4, np.float32)
    row_K, offsets_N1 = np.array([2, 0, 4, 8, 5, 15]), np.array([0, 2, 3, 5, 6])
    of_tokens = (row_K, offsets_N1, codes_T[row_K], gains_T[row_K], residuals_TR)
    found_N = kernels.rerank(*of_tokens, gain_of, table_CL, table_RWL, factor, score_N)
    decoded_TH = centroids_CH[codes_T] + np.concatenate([codebook_RWd[r, residuals_TR[:, r]] for r in (0, 1)], axis=1)
    sim_TL = (decoded_TH * levels[gains_T][:, None]) @ q_HL
    wanted_N = [sim_TL[row_K[offsets_N1[n] : offsets_N1[n + 1]]].max(axis=0).sum() for n in range(4)]
    np.testing.assert_allclose(found_N, wanted_N, atol=32 * 4 / 4000)  # four roundings down, of 32 query tokens


@pytest.mark.parametrize("L", [32, 64])
def test_rescoring_is_maxsim_of_eight_bit_vectors(rng, L):
    vectors_TH = rng.integers(-127, 128, (T, H)).astype(np.int8)
    q_HL = rng.standard_normal((H, L)).astype(np.float32)
    some = np.array([0, 2, 3, 5, 6])
    found_N = kernels.rescore(some, OFFSETS, vectors_TH, *kernels.paired_query(q_HL.T), np.empty(5, np.float32))
    wanted_N = [(vectors_TH[OFFSETS[b] : OFFSETS[b + 1]] @ rounded(q_HL.T).T).max(axis=0).sum() for b in some]
    np.testing.assert_allclose(found_N, wanted_N, rtol=1e-5)


@pytest.mark.parametrize("d", [2, 4, 8])
@pytest.mark.parametrize("n", [300, 301, 1, 0])
def test_the_nearest_of_256_codewords_is_found(rng, d, n):
    codebook_RWd = rng.standard_normal((8 // d, 256, d)).astype(np.float32)
    codebook = np.ascontiguousarray(-2 * codebook_RWd.transpose(0, 2, 1)), np.square(codebook_RWd).sum(axis=2)
    x_TH = rng.standard_normal((n, 8)).astype(np.float32)
    x_TH[-1:] = codebook_RWd[:, 7].reshape(-1)  # at distance 0
    code_TR = np.empty((n, 8 // d), np.uint8)
    kernels.nearest_codewords(x_TH, *codebook, code_TR)
    away_TRW = np.square(x_TH.reshape(n, 8 // d, 1, d) - codebook_RWd).sum(axis=-1)
    chosen_TR = np.take_along_axis(away_TRW, code_TR[..., None].astype(int), axis=2)[..., 0]
    np.testing.assert_allclose(chosen_TR, away_TRW.min(axis=2, initial=np.inf), rtol=1e-4, atol=1e-5)
    assert (code_TR[-1:] == 7).all()


def test_postings_name_each_passage_once_at_each_centroid(rng, codes_T):
    count_CP, low = np.zeros((C, 1), np.uint32), 2
    kernels.count_postings(codes_T, LENGTHS, 0, np.full(C, -1), count_CP)
    document_T = np.repeat(np.arange(B), LENGTHS)
    wanted = [sorted(set(document_T[codes_T == c].tolist())) for c in range(C)]
    assert count_CP[:, 0].tolist() == [len(documents) for documents in wanted]
    starts = offsets_of(count_CP[low:, 0])
    postings = np.empty(starts[-1], np.uint16)
    kernels.fill_postings(codes_T, LENGTHS, 0, low, np.full(C - low, -1), starts[:-1].copy(), postings)
    assert [run.tolist() for run in np.split(postings, starts[1:-1])] == wanted[low:]


def test_importing_the_library_does_not_load_the_compiler():
    program = "import sys, xmlib, xmlib.models, xmlib.systems; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


def test_kernels_compile_where_nothing_can_be_written():
    """As in a read-only container: without a cache, not with an error."""
    program = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
import numpy as np
from xmlib.index import kernels
assert kernels.best(np.int32([1, 3, 2]), 2).tolist() == [1, 2]
print("done")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "done", run.stderr


def test_a_product_of_a_few_rows_is_that_of_numpy_and_takes_arrays_that_cannot_be_written():
    rng = np.random.default_rng(0)
    for S, H, G in ((0, 8, 8), (1, 8, 3), (23, 128, 128)):
        rows, matrix = rng.standard_normal((S, H), dtype=np.float32), rng.standard_normal((H, G), dtype=np.float32)
        matrix.flags.writeable = False
        found = np.empty((len(rows), matrix.shape[1]), np.float32)
        kernels.product(rows, matrix, found)
        assert found.shape == (S, G) and found.dtype == np.float32
        np.testing.assert_allclose(found, rows @ matrix, atol=1e-4)
