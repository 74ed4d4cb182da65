"""The codec: bits in and out, buckets worked by hand, the error bound of each bit width, the same on every run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmlib.index import residual


def clustered(T=6000, types=100, H=32, noise=0.5, seed=0):
    """Unit vectors around type directions, as tokens of a language are."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((types, H)) / np.sqrt(H)
    x = directions[rng.integers(0, types, T)] + noise * rng.standard_normal((T, H)) / np.sqrt(H)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(1, 30), st.data())
def test_packed_codes_unpack_to_themselves_in_the_fewest_bytes(n_bits, data):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**n_bits - 1), max_size=50)), dtype=np.int32)
    packed = residual.pack_codes(codes, n_bits)
    assert len(packed) == -(-len(codes) * n_bits // 8)
    unpacked = residual.unpack_codes(packed, n_bits, len(codes))
    assert unpacked.dtype == np.int32
    np.testing.assert_array_equal(unpacked, codes)


def test_codes_of_one_centroid_take_no_bits():
    assert len(residual.pack_codes(np.zeros(5, np.int32), 0)) == 0
    assert residual.unpack_codes(np.zeros(0, np.uint8), 0, 5).tolist() == [0] * 5


@pytest.mark.parametrize("n_bits", [5, 12])
def test_codes_are_packed_block_by_block_as_if_at_once(monkeypatch, n_bits):
    codes = np.random.default_rng(0).integers(0, 2**n_bits, 100).astype(np.int32)
    at_once = residual.pack_codes(codes, n_bits)
    monkeypatch.setattr(residual, "BLOCK", 16)
    np.testing.assert_array_equal(residual.pack_codes(codes, n_bits), at_once)
    np.testing.assert_array_equal(residual.unpack_codes(at_once, n_bits, 100), codes)


@given(st.sampled_from(residual.N_BITS), st.integers(0, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_decoding_looks_up_the_weight_of_each_packed_bucket(n_bits, T, n_bytes, seed):
    rng = np.random.default_rng(seed)
    buckets_TH = rng.integers(0, 2**n_bits, (T, n_bytes * 8 // n_bits)).astype(np.uint8)
    weights = np.sort(rng.standard_normal(2**n_bits)).astype(np.float32)
    H = buckets_TH.shape[1]
    scales_H = rng.random(H, dtype=np.float32) + 0.5
    codec = residual.Codec(np.zeros((1, H), np.float32), scales_H, weights[1:], weights)
    packed_TR = residual.pack_buckets(buckets_TH, n_bits)
    assert packed_TR.shape == (T, n_bytes)
    expected = weights[buckets_TH] * scales_H
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(codec.decode(np.zeros(T, np.int32), packed_TR), expected, rtol=1e-5)


def test_a_vector_worked_by_hand():
    centroids_CH = np.float32([[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]])
    scales_H = np.float32([1, 1, 1, 1, 1, 1, 1, 2])
    codec = residual.Codec(centroids_CH, scales_H, cutoffs=np.float32([0]), weights=np.float32([-0.25, 0.25]))
    codes_T, residuals_TR = codec.encode(np.float32([[0.1, 0.9, -0.1, 0.2, 0, 0, 0, 0.1]]))
    assert codes_T.tolist() == [1]
    assert residuals_TR.tolist() == [[0b10001001]]  # above zero in dimensions 0, 3 and 7; 0.9 - 1 is below
    decoded = np.array([0.25, 0.75, -0.25, 0.25, -0.25, -0.25, -0.25, 0.5])
    np.testing.assert_allclose(codec.decode(codes_T, residuals_TR)[0], decoded / np.linalg.norm(decoded), rtol=1e-6)


def test_buckets_of_two_heaps_are_their_means():
    cutoffs, weights = residual.buckets(np.float32([[-1.5, -1, -0.5, 2, 2, 5]]), n_bits=1)
    assert weights.tolist() == [-1, 3]
    assert cutoffs.tolist() == [1]


def test_buckets_that_nothing_falls_into_do_no_harm():
    cutoffs, weights = residual.buckets(np.zeros((3, 8), np.float32), n_bits=2)
    assert cutoffs.tolist() == [0] * 3
    assert weights.tolist() == [0] * 4


@pytest.mark.parametrize(("n_bits", "cosine", "share_of_error"), [(1, 0.92, 0.45), (2, 0.97, 0.15), (4, 0.995, 0.02)])
def test_the_error_of_each_bit_width_is_bounded(n_bits, cosine, share_of_error):
    vectors_TH = clustered()
    codec = residual.train(vectors_TH, n_centroids=128, n_bits=n_bits)
    codes_T, residuals_TR = codec.encode(vectors_TH)
    decoded_TH = codec.decode(codes_T, residuals_TR)
    np.testing.assert_allclose(np.linalg.norm(decoded_TH, axis=1), 1, atol=1e-5)
    assert (decoded_TH * vectors_TH).sum(axis=1).mean() > cosine
    # For values from a normal distribution the best buckets leave 36, 12 and 0.95 % of the variance.
    without = np.square(vectors_TH - codec.centroids_CH[codes_T]).mean()
    assert np.square(decoded_TH - vectors_TH).mean() < share_of_error * without
    assert residuals_TR.shape == (len(vectors_TH), 32 * n_bits // 8)
    assert codec.code_bits == 7


def test_uneven_dimensions_cost_no_more_than_even_ones():
    uneven = clustered() * np.logspace(0, -2, 32, dtype=np.float32)
    uneven /= np.linalg.norm(uneven, axis=1, keepdims=True)
    codec = residual.train(uneven, n_centroids=128, n_bits=2)
    codes_T, residuals_TR = codec.encode(uneven)
    error = np.square(codec.decode(codes_T, residuals_TR) - uneven).mean()
    assert error < 0.15 * np.square(uneven - codec.centroids_CH[codes_T]).mean()


def test_each_vector_gets_its_nearest_centroid():
    vectors_TH = clustered(T=500)
    centroids_CH = residual.kmeans(vectors_TH, 16, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids_CH, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(residual.nearest(vectors_TH, centroids_CH), (vectors_TH @ centroids_CH.T).argmax(1))


def test_training_twice_gives_the_same_codec_and_another_seed_another():
    vectors_TH = clustered(T=3000)
    one, same, other = (residual.train(vectors_TH, 64, 2, seed) for seed in (1, 1, 2))
    for name in ("centroids_CH", "scales_H", "cutoffs", "weights"):
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
