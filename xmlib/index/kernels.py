"""The inner loops of search, compiled by numba on first use and kept on disk for the next process.

What the loops do is add and compare bytes and 16-bit integers, 32 query tokens at a time. The compiler does not find
that by itself, so a `Lanes` value is a vector of 32 numbers with a handful of operations on it, and LLVM cuts it into
the registers the processor has: one of AVX-512, two of AVX2, four of SSE or NEON. Nothing here is specific to one.

    approximate    a score for every passage, from the centroids its tokens lie at
    best           the n highest of those scores
    rerank         scores of a few passages from residual codes, by adding table rows
    rescore        scores of a few passages from 8-bit vectors
    maxsim_tile    exact scores, from all products of query tokens and document tokens

Axes, used as suffixes:  B documents · N some of them · T document tokens · C centroids · H embedding
                         R bytes of a residual · L = query tokens, filled up to a multiple of LANES
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 32


def compiled(function):
    """numba's njit without Python's lock, cached beside the source or, where that cannot be written, at home."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no place to write at all, as in a read-only container: compile anew in every process
        return numba.njit(nogil=True, error_model="numpy")(function)


class Lanes(types.Type):
    """LANES numbers of one type, held in registers."""

    def __init__(self, number) -> None:
        self.number = number
        super().__init__(name=f"Lanes({number})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes) -> None:
        scalar = ir.FloatType() if lanes.number is types.float32 else ir.IntType(lanes.number.bitwidth)
        super().__init__(manager, lanes, ir.VectorType(scalar, LANES))


def _vector(lanes) -> ir.VectorType:
    return _LanesModel(None, lanes).get_value_type()


def _pointer(context, builder, array_type, array, index, lanes):
    """To element `index` of an array's memory, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(lanes).as_pointer())


@intrinsic
def load(typing, array, index):
    """LANES consecutive elements of a contiguous array, from flat position `index`."""
    lanes = Lanes(array.dtype)

    def generate(context, builder, signature, args):
        value = builder.load(_pointer(context, builder, array, *args, lanes))
        value.align = 1
        return value

    return lanes(array, types.intp), generate


@intrinsic
def store(typing, array, index, lanes):
    def generate(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, array, args[0], args[1], lanes), align=1)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def fill(typing, number):
    """The same number in every lane."""
    lanes = Lanes(number)

    def generate(context, builder, signature, args):
        return _splat(builder, args[0], lanes)

    return lanes(number), generate


def _splat(builder, scalar, lanes):
    vector = _vector(lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    )


def _elementwise(generate):
    @intrinsic
    def operation(typing, one, other):
        return one(one, other), lambda context, builder, signature, args: generate(builder, one.number, *args)

    return operation


def _larger(builder, number, one, other):
    if number is types.float32:
        test = builder.fcmp_ordered(">", one, other)
    else:
        test = (builder.icmp_signed if number.signed else builder.icmp_unsigned)(">", one, other)
    return builder.select(test, one, other)


def _sum(builder, number, one, other):
    return builder.fadd(one, other, flags=("fast",)) if number is types.float32 else builder.add(one, other)


def _product(builder, number, one, other):
    return builder.fmul(one, other, flags=("fast",)) if number is types.float32 else builder.mul(one, other)


def _smaller(builder, number, one, other):
    return builder.select(builder.icmp_signed("<", one, other), one, other)


def _difference(builder, number, one, other):
    return builder.fsub(one, other, flags=("fast",)) if number is types.float32 else builder.sub(one, other)


larger = _elementwise(_larger)
smaller = _elementwise(_smaller)  # of int32
plus = _elementwise(_sum)
minus = _elementwise(_difference)
times = _elementwise(_product)


@intrinsic
def scaled(typing, lanes, factor):
    """int16 lanes times factor / 2 ** 15, for a factor from 0 to 2 ** 15."""

    def generate(context, builder, signature, args):
        wide = ir.VectorType(ir.IntType(32), LANES)
        product = builder.mul(builder.sext(args[0], wide), _splat(builder, args[1], Lanes(types.int32)))
        shift = _splat(builder, ir.Constant(ir.IntType(32), 15), Lanes(types.int32))
        return builder.trunc(builder.ashr(product, shift), _vector(lanes))

    return lanes(lanes, types.int32), generate


@intrinsic
def to_int16(typing, lanes):
    """float32 lanes to whole numbers, which must be in range."""

    def generate(context, builder, signature, args):
        whole = builder.fptosi(args[0], ir.VectorType(ir.IntType(32), LANES))
        return builder.trunc(whole, _vector(Lanes(types.int16)))

    return Lanes(types.int16)(lanes), generate


@intrinsic
def to_uint8(typing, lanes):
    """int16 lanes from 0 to 255 to bytes."""
    return Lanes(types.uint8)(lanes), lambda context, builder, signature, args: builder.trunc(
        args[0], _vector(Lanes(types.uint8))
    )


@intrinsic
def keyed(typing, lanes, key):
    """float32 lanes, none negative, as int32 in the same order, with `key` + lane in their lowest eight bits."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], _vector(Lanes(types.int32)))
        own = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
        key = builder.add(_splat(builder, args[1], Lanes(types.int32)), own)
        mask = _splat(builder, ir.Constant(ir.IntType(32), ~255), Lanes(types.int32))
        return builder.or_(builder.and_(bits, mask), key)

    return Lanes(types.int32)(lanes, types.int32), generate


def _reduction(name):
    @intrinsic
    def reduction(typing, lanes):
        def generate(context, builder, signature, args):
            wide = ir.VectorType(ir.IntType(32), LANES)
            value = args[0]
            if lanes.number.bitwidth < 32:
                value = (builder.sext if lanes.number.signed else builder.zext)(value, wide)
            reduce = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.IntType(32), [wide]), f"llvm.vector.reduce.{name}.v{LANES}i32"
            )
            return builder.call(reduce, [value])

        return types.int32(lanes), generate

    return reduction


total, lowest = _reduction("add"), _reduction("smin")


@compiled
def approximate(positions_N, offsets_B1, codes_T, bytes_CL, score_N):
    """Score passages as if each token lay at its centroid. A passage with no token scores -1."""
    L = bytes_CL.shape[1]
    for n in range(len(positions_N)):
        start, stop = offsets_B1[positions_N[n]], offsets_B1[positions_N[n] + 1]
        score = 0
        for l in range(0, L, LANES):
            highest = fill(np.uint8(0))
            for t in range(start, stop):
                highest = larger(highest, load(bytes_CL, np.intp(codes_T[t]) * L + l))
            score += total(highest)
        score_N[n] = score if stop > start else -1


@compiled
def best(score_B, n):
    """Where the n highest scores stand, in order; ties at the last place go to the earlier.

    Scores are small whole numbers, so one pass counts them and a second collects; negative ones never count.
    """
    highest = -1
    for b in range(len(score_B)):
        highest = max(highest, score_B[b])
    count = np.zeros(highest + 2, np.int64)
    for b in range(len(score_B)):
        if score_B[b] >= 0:
            count[score_B[b]] += 1
    least, found = highest + 1, 0
    while least > 0 and found < n:
        least -= 1
        found += count[least]
    ties = count[least] - max(found - n, 0)  # how many passages that score `least` go in
    position_N = np.empty(min(found, n), np.int64)
    i = 0
    for b in range(len(score_B)):
        if score_B[b] > least or (score_B[b] == least and ties > 0):
            ties -= score_B[b] == least
            position_N[i] = b
            i += 1
    return position_N


@compiled
def centroid_table(centroids_CH, q_HL, factor, table_CL):
    """Products of centroids and query tokens, times factor, as int16. Two centroids share the loads of a query."""
    C, H = centroids_CH.shape
    L = q_HL.shape[1]
    by = fill(np.float32(factor))
    for l in range(0, L, LANES):
        for c in range(0, C, 2):
            d = min(c + 1, C - 1)
            one = other = fill(np.float32(0))
            for h in range(H):
                query = load(q_HL, h * L + l)
                one = plus(one, times(query, fill(centroids_CH[c, h])))
                other = plus(other, times(query, fill(centroids_CH[d, h])))
            store(table_CL, c * L + l, to_int16(times(one, by)))
            store(table_CL, d * L + l, to_int16(times(other, by)))


@compiled
def to_bytes(table_CL, low_L, bytes_CL):
    """The products as bytes: from `low` of each query token, the same step for all, so that the highest is 255."""
    C, L = table_CL.shape
    high_L = np.empty(L, np.int16)
    for l in range(0, L, LANES):
        high = fill(np.int16(-32768))
        for c in range(C):
            high = larger(high, load(table_CL, c * L + l))
        store(high_L, l, high)
    span = 256  # a step is at least 1
    for l in range(L):
        low_L[l] = max(low_L[l], np.int32(high_L[l]) - 32767)
        span = max(span, np.int32(high_L[l]) - low_L[l])
    factor = np.int32(255 * 32768 // span)
    for l in range(0, L, LANES):
        low = load(low_L, l)
        for c in range(C):
            value = minus(larger(load(table_CL, c * L + l), low), low)
            store(bytes_CL, c * L + l, to_uint8(scaled(value, factor)))


@compiled
def residual_table(codebook_RWd, q_HL, factor, table_RWL):
    """What each value of each residual byte adds to the product with each query token, times factor, as int16."""
    R, W, d = codebook_RWd.shape
    L = q_HL.shape[1]
    for l in range(0, L, LANES):
        for r in range(R):
            for w in range(W):
                value = fill(np.float32(0))
                for i in range(d):
                    by = fill(np.float32(codebook_RWd[r, w, i] * factor))
                    value = plus(value, times(load(q_HL, (r * d + i) * L + l), by))
                store(table_RWL, (r * W + w) * L + l, to_int16(value))


@compiled
def rerank(positions_N, offsets_B1, codes_T, gains_T, residuals_TR, gain_of, table_CL, table_RWL, factor, score_N):
    """MaxSim of some passages from their codes: (centroid + residual) x gain, in 16-bit arithmetic.

    The tables are those of centroid_table and residual_table, made with this factor. Query tokens filled up have
    products of 0 everywhere, and add 0.
    """
    L = table_CL.shape[1]
    R, W = table_RWL.shape[:2]
    for n in range(len(positions_N)):
        start, stop = offsets_B1[positions_N[n]], offsets_B1[positions_N[n] + 1]
        score = 0
        for l in range(0, L, LANES):
            highest = fill(np.int16(-32768))
            for t in range(start, stop):
                value = load(table_CL, np.intp(codes_T[t]) * L + l)
                for r in range(R):
                    value = plus(value, load(table_RWL, (r * W + np.intp(residuals_TR[t, r])) * L + l))
                highest = larger(highest, scaled(value, gain_of[gains_T[t]]))
            score += total(highest)
        score_N[n] = score / factor
    return score_N


@compiled
def rescore(positions_N, offsets_B1, vectors_TH, q_HL, score_N):
    """MaxSim of some passages from 8-bit vectors; q_HL carries the scale of each dimension.

    Two tokens share the loads of a query; a passage of an odd number of tokens meets its last one twice.
    """
    H, L = q_HL.shape
    highest_L = np.empty(L, np.float32)
    token_2H = np.empty((2, H), np.float32)
    for n in range(len(positions_N)):
        start, stop = offsets_B1[positions_N[n]], offsets_B1[positions_N[n] + 1]
        highest_L[:] = -np.inf
        for t in range(start, stop, 2):
            u = min(t + 1, stop - 1)
            for h in range(H):
                token_2H[0, h] = vectors_TH[t, h]
            for h in range(H):
                token_2H[1, h] = vectors_TH[u, h]
            for l in range(0, L, LANES):
                one = other = fill(np.float32(0))
                for h in range(H):
                    query = load(q_HL, h * L + l)
                    one = plus(one, times(query, fill(token_2H[0, h])))
                    other = plus(other, times(query, fill(token_2H[1, h])))
                store(highest_L, l, larger(load(highest_L, l), larger(one, other)))
        score = np.float32(0)
        for l in range(L):
            score += highest_L[l]
        score_N[n] = score
    return score_N


@compiled
def maxsim_tile(sim_TQ, offsets_N1, q_offsets_A1, score_AN):
    """MaxSim of all queries and the documents of a tile, from the products of their tokens.

    Query a has columns q_offsets_A1[a] : q_offsets_A1[a + 1] of Q, which is filled up to LANES. A document with no
    token scores -inf, as does anything for a query with no token.
    """
    Q = sim_TQ.shape[1]
    highest_Q = np.empty(Q, np.float32)
    for n in range(len(offsets_N1) - 1):
        start, stop = offsets_N1[n], offsets_N1[n + 1]
        for q in range(0, Q, LANES):
            highest = fill(np.float32(-np.inf))
            for t in range(start, stop):
                highest = larger(highest, load(sim_TQ, t * Q + q))
            store(highest_Q, q, highest)
        for a in range(len(score_AN)):
            score = np.float32(0)
            for q in range(q_offsets_A1[a], q_offsets_A1[a + 1]):
                score += highest_Q[q]
            score_AN[a, n] = score if q_offsets_A1[a] < q_offsets_A1[a + 1] else -np.inf


@compiled
def nearest_codewords(x_TH, codebook_RdW, code_TR):
    """For each run of d dimensions the nearest of 256 codewords."""
    R, d, W = codebook_RdW.shape
    for r in range(R):
        for t in range(len(x_TH)):
            least = fill(np.int32(2**31 - 1))
            for w in range(0, W, LANES):
                distance = fill(np.float32(0))
                for i in range(d):
                    away = minus(load(codebook_RdW, (r * d + i) * W + w), fill(x_TH[t, r * d + i]))
                    distance = plus(distance, times(away, away))
                least = smaller(least, keyed(distance, np.int32(w)))
            code_TR[t, r] = lowest(least) & 255


@compiled
def codeword_sums(x_TH, code_TR, sum_RWd, count_RW):
    """The sum and the number of the runs that lie at each codeword."""
    R, _, d = sum_RWd.shape
    for t in range(len(x_TH)):
        for r in range(R):
            w = code_TR[t, r]
            count_RW[r, w] += 1
            for i in range(d):
                sum_RWd[r, w, i] += x_TH[t, r * d + i]


@compiled
def unpack(packed, n_bits, code_T):
    """Whole numbers of n_bits each from a string of bits, lowest first."""
    mask = (1 << n_bits) - 1
    for t in range(len(code_T)):
        bit = t * n_bits
        first, last = bit >> 3, (bit + n_bits + 7) >> 3
        value = np.int64(0)
        for i in range(first, last):
            value |= np.int64(packed[i]) << (8 * (i - first))
        code_T[t] = (value >> (bit & 7)) & mask


@compiled
def lists(codes_T, offsets_B1, next_C):
    """Passages sorted by the centroids of their tokens; next_C is where each centroid's run starts, and is used up."""
    document_T = np.empty(len(codes_T), np.int32)
    for b in range(len(offsets_B1) - 1):
        for t in range(offsets_B1[b], offsets_B1[b + 1]):
            document_T[next_C[codes_T[t]]] = b
            next_C[codes_T[t]] += 1
    return document_T
