"""The codec: bits in and out, codewords worked by hand, the error of each bit width, the same on every run."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmlib.index import residual


def clustered(T=6000, types=100, H=32, noise=0.5, seed=0):
    """Unit vectors around type directions, as tokens of a language are."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((types, H)) / np.sqrt(H)
    x = directions[rng.integers(0, types, T)] + noise * rng.standard_normal((T, H)) / np.sqrt(H)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 30), st.data())
def test_packed_codes_unpack_to_themselves_in_the_fewest_bytes(n_bits, data):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**n_bits - 1), max_size=50)), dtype=np.int32)
    packed = residual.pack_codes(codes, n_bits)
    assert len(packed) == -(-len(codes) * n_bits // 8)
    unpacked = residual.unpack_codes(packed, n_bits, 0, len(codes))
    assert unpacked.dtype == (np.uint8 if n_bits <= 8 else np.uint16 if n_bits <= 16 else np.uint32)
    np.testing.assert_array_equal(unpacked, codes)


def test_codes_of_one_centroid_take_no_bits():
    assert len(residual.pack_codes(np.zeros(5, np.int32), 0)) == 0
    assert residual.unpack_codes(np.zeros(0, np.uint8), 0, 0, 5).tolist() == [0] * 5


@pytest.mark.parametrize("n_bits", [5, 12])
def test_codes_are_packed_block_by_block_as_if_at_once(monkeypatch, n_bits):
    codes = np.random.default_rng(0).integers(0, 2**n_bits, 100).astype(np.int32)
    at_once = residual.pack_codes(codes, n_bits)
    monkeypatch.setattr(residual, "BLOCK", 16)
    np.testing.assert_array_equal(residual.pack_codes(codes, n_bits), at_once)
    np.testing.assert_array_equal(residual.unpack_codes(at_once, n_bits, 0, 100), codes)


@pytest.mark.parametrize("n_bits", [1, 4, 17, 29])
def test_runs_and_rows_of_packed_codes_are_those_of_all(n_bits):
    codes = np.random.default_rng(0).integers(0, 2**n_bits, 200)
    packed = residual.pack_codes(codes.astype(np.int32), n_bits)
    some = np.array([7, 0, 150]), np.array([20, 0, 200])
    wanted = np.concatenate([codes[7:20], codes[150:]])
    np.testing.assert_array_equal(residual.unpack_codes(packed, n_bits, *some), wanted)
    np.testing.assert_array_equal(residual.unpack_rows(packed, n_bits, np.array([199, 3, 3])), codes[[199, 3, 3]])


def toy_codec():
    """Two centroids in four dimensions, two of them to a codeword; only the first codewords are ever nearest."""
    centroids_CH = np.float32([[1, 0, 0, 0], [0, 1, 0, 0]])
    codebook_RWd = np.full((2, 256, 2), 9, np.float32)
    codebook_RWd[:, :3] = [[[0, 0], [0.25, 0], [0, -0.25]], [[0, 0], [0.5, 0.5], [0, 0.25]]]
    return residual.Codec(np.eye(4, dtype=np.float32), centroids_CH, codebook_RWd, np.linspace(0.5, 2, 16))


def test_a_vector_worked_by_hand():
    codec = toy_codec()
    assert (codec.n_bits, codec.code_bits) == (4, 1)
    codes_T, gains_T, residuals_TR = codec.encode(np.float32([[0.2, 0.9, -0.1, 0.2]]))
    assert codes_T.tolist() == [1]
    assert residuals_TR.tolist() == [[1, 2]]  # 0.2, -0.1 is nearest to 0.25, 0; then -0.1, 0.2 to 0, 0.25
    # 0.25, 1, 0, 0.25 has the length sqrt(1.125); the level nearest to 1 / that is 0.5 + 4 · 0.1
    assert gains_T.tolist() == [4]
    np.testing.assert_allclose(codec.decode(codes_T, gains_T, residuals_TR), [[0.225, 0.9, 0, 0.225]], rtol=1e-5)


def test_a_rotation_is_undone_on_decoding():
    rotation_HH = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0].astype(np.float32)
    plain, turned = toy_codec(), toy_codec()
    turned.rotation_HH = rotation_HH
    vector = np.float32([[0.2, 0.9, -0.1, 0.2]])
    encoded = turned.encode(vector @ rotation_HH.T)
    for ours, theirs in zip(encoded, plain.encode(vector), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(turned.decode(*encoded) @ rotation_HH, plain.decode(*encoded), atol=1e-6)


def test_no_decoded_vector_is_longer_than_the_codec_says():
    codec = residual.train(clustered(T=2000), 32, 2)
    rng = np.random.default_rng(1)
    codes_T, gains_T = rng.integers(0, 32, 5000), rng.integers(0, 16, 5000)
    decoded_TH = codec.decode(codes_T, gains_T, rng.integers(0, 256, (5000, 8)).astype(np.uint8))
    assert np.linalg.norm(decoded_TH, axis=1).max() <= codec.longest


@pytest.mark.parametrize(("n_bits", "cosine", "share_of_error"), [(1, 0.93, 0.4), (2, 0.975, 0.12), (4, 0.995, 0.02)])
def test_the_error_of_each_bit_width_is_bounded(n_bits, cosine, share_of_error):
    vectors_TH = clustered()
    codec = residual.train(vectors_TH, n_centroids=128, n_bits=n_bits)
    codes_T, gains_T, residuals_TR = codec.encode(vectors_TH)
    decoded_TH = codec.decode(codes_T, gains_T, residuals_TR)
    np.testing.assert_allclose(np.linalg.norm(decoded_TH, axis=1), 1, atol=0.1)
    assert (decoded_TH * vectors_TH).sum(axis=1).mean() > cosine
    # One bucket per dimension leaves 36, 12 and 0.95 % of the variance of normally distributed residuals.
    rotated_TH = codec.rotate(vectors_TH)
    without = np.square(rotated_TH - codec.centroids_CH[codes_T]).mean()
    assert np.square(decoded_TH - vectors_TH).mean() < share_of_error * without
    assert residuals_TR.shape == (len(vectors_TH), 32 * n_bits // 8)
    assert codec.code_bits == 7


def test_a_rotation_spends_the_bits_where_the_variance_is():
    """Of dimensions that vary unevenly, 2 bits leave much less error than of even ones."""
    uneven = clustered() * np.logspace(0, -2, 32, dtype=np.float32)
    uneven /= np.linalg.norm(uneven, axis=1, keepdims=True)
    codec = residual.train(uneven, n_centroids=128, n_bits=2)
    codes_T, gains_T, residuals_TR = codec.encode(uneven)
    error = np.square(codec.decode(codes_T, gains_T, residuals_TR) - uneven).mean()
    assert error < 0.05 * np.square(codec.rotate(uneven) - codec.centroids_CH[codes_T]).mean()


def test_the_axes_are_dealt_so_that_no_group_has_all_the_variance():
    rng = np.random.default_rng(0)
    scales_H = np.logspace(0, -2, 8)
    turn_HH = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x_TH = (rng.standard_normal((5000, 8)) * scales_H @ turn_HH).astype(np.float32)
    rotation_HH = residual.balanced_rotation(x_TH, 2)
    np.testing.assert_allclose(rotation_HH.T @ rotation_HH, np.eye(8), atol=1e-5)
    product = np.log((x_TH @ rotation_HH).var(axis=0)).reshape(2, 4).sum(axis=1)
    assert abs(product[0] - product[1]) < 2  # where half and half would differ by 18


def test_more_iterations_of_codewords_leave_less_error(monkeypatch):
    residuals_TH = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)

    def error(iterations):
        monkeypatch.setattr(residual, "CODEWORD_ITERATIONS", iterations)
        codebook_RWd = residual.codewords(residuals_TH, 2, seed=0)
        codes_TR = residual.nearest_codewords(residuals_TH, codebook_RWd)
        decoded_TH = np.concatenate([codebook_RWd[r, codes_TR[:, r]] for r in range(2)], axis=1)
        return np.square(decoded_TH - residuals_TH).mean()

    assert error(12) < error(3) < error(0)


def test_each_vector_gets_its_nearest_centroid():
    vectors_TH = clustered(T=500)
    centroids_CH = residual.kmeans(vectors_TH, 16, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids_CH, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(residual.nearest(vectors_TH, centroids_CH), (vectors_TH @ centroids_CH.T).argmax(1))


def test_looking_in_groups_of_centroids_finds_nearly_the_nearest():
    vectors_TH = clustered(T=20_000, types=600)
    codec = residual.train(vectors_TH, residual.GROUPED, 2)
    rotated_TH = codec.rotate(vectors_TH)
    codes_T, best_T = codec.encode(vectors_TH)[0], residual.nearest(rotated_TH, codec.centroids_CH)
    assert (codes_T == best_T).mean() > 0.95
    lost_T = (rotated_TH * (codec.centroids_CH[best_T] - codec.centroids_CH[codes_T])).sum(axis=1)
    assert lost_T.mean() < 0.01  # of 0.9


def test_training_twice_gives_the_same_codec_and_another_seed_another():
    vectors_TH = clustered(T=3000)
    one, same, other = (residual.train(vectors_TH, 64, 2, seed) for seed in (1, 1, 2))
    for name in ("rotation_HH", "centroids_CH", "codebook_RWd", "gain_levels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.centroids_CH != other.centroids_CH).any()


def test_the_number_of_centroids_is_the_power_of_two_below_sixteen_roots():
    assert residual.n_centroids_for(600_000_000) == 2**18
    assert residual.n_centroids_for(72_000) == 4096
    assert residual.n_centroids_for(100) == 64  # not more than there are tokens
    assert residual.n_centroids_for(1) == 1


def test_settings_that_will_not_do_are_refused():
    vectors_TH = clustered(T=50)
    with pytest.raises(ValueError, match="n_bits must be one of 1, 2, 4, not 3"):
        residual.train(vectors_TH, 4, 3)
    with pytest.raises(ValueError, match="30 dimensions of 2 bits do not fill whole bytes"):
        residual.train(vectors_TH[:, :30], 4, 2)
    with pytest.raises(ValueError, match="the index holds 32 dimensions, the vectors 16"):
        residual.train(vectors_TH, 4, 2).encode(vectors_TH[:, :16])


def test_types_share_the_centroids_and_rare_ones_pool_theirs():
    rng = np.random.default_rng(0)
    types_T = np.concatenate([np.full(3000, 7), np.full(400, 9), np.arange(100, 160)]).astype(np.int32)
    vectors_TH = clustered(T=len(types_T))
    order = rng.permutation(len(types_T))
    types_T, vectors_TH = types_T[order], vectors_TH[order]
    centroids_CH, types_C = residual.kmeans_by_type(vectors_TH, types_T, 64, seed=1)
    assert len(centroids_CH) == len(types_C) == 64 and (np.diff(types_C) >= 0).all()
    count = {of: int((types_C == of).sum()) for of in (7, 9, residual.REST)}
    assert sum(count.values()) == 64 and count[7] > count[9] > 3 and count[residual.REST] > 3
    assert count[7] / count[9] < 3000 / 400, "rare types have more than their share of the tokens"
    np.testing.assert_array_equal(centroids_CH, residual.kmeans_by_type(vectors_TH, types_T, 64, seed=1)[0])

    others = partial(residual.nearest, centroids_CH=centroids_CH)
    codes_T = residual.assigned_by_type(vectors_TH, types_T, centroids_CH, types_C, others)
    for of in (7, 9, 120):  # the last has none of its own
        own = np.flatnonzero((types_C == of) | (of == 120))
        product_TC = vectors_TH[types_T == of] @ centroids_CH[own].T
        np.testing.assert_array_equal(codes_T[types_T == of], own[product_TC.argmax(axis=1)])


def test_a_codec_encodes_on_any_number_of_threads_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    vectors_TH, types_T = clustered(9000, 50), rng.integers(0, 40, 9000).astype(np.int32)
    codec = residual.train(vectors_TH, 256, 2, types_T=types_T)
    encoded = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        encoded.append(codec.encode(vectors_TH, types_T) + codec.encode(vectors_TH))
    for one, other in zip(*encoded, strict=True):
        np.testing.assert_array_equal(one, other)
