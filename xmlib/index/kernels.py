"""The inner loops of search, compiled by numba on first use and kept on disk for the next process.

What the loops do is add, multiply and compare bytes and 16-bit integers, 32 query tokens at a time. The compiler does
not find that by itself, so a `Lanes` value is a vector of 32 numbers with a handful of operations on it, and LLVM cuts
it into the registers the processor has: one of AVX-512, two of AVX2, four of SSE or NEON. Nothing here is specific to
one.

    product        rows times a small matrix
    approximate    a score for every passage, from the centroids its tokens lie at
    highest        the centroids nearest to each query token
    listed         the passages that their lists speak for most
    best           the n highest of some scores
    contenders     the tokens of a few passages that may decide their scores
    rerank         scores of a few passages from residual codes, by adding table rows
    rescore        scores of a few passages from 8-bit vectors
    nearest        the centroid of each vector
    maxsim_tile    exact scores, from all products of query tokens and document tokens

Axes, used as suffixes:  B documents · N some of them · T document tokens · C centroids · H embedding
                         R bytes of a residual · L = query tokens, filled up to a multiple of LANES
                         K tokens that contend · P = H / 2 pairs of dimensions
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 32
BLOCK = 1 << 16  # passages whose place within their block fits in 16 bits, and whose scores stay in cache
TOKEN_BITS = 11  # hold the number of any query token; so many leave room for the bytes of all of them
WORD = 8  # bytes that are loaded at once for a number of a few bits
LINE = 16  # int32 in a line of the cache
AHEAD = 8  # rows that are asked for before they are read: they lie far apart, so the processor cannot guess them
FAR = 1024  # codes in a row that are asked for ahead: the processor guesses only up to the next page of memory


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
def item(typing, array, index):
    """The element of a contiguous array at flat position `index`, which must not be negative.

    In array[index] the compiler has to allow for Python's negative positions, at four instructions each.
    """

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), generate


@intrinsic
def put(typing, array, index, value):
    """Set the element of a contiguous array at flat position `index`, which must not be negative, as of `item`."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), generate


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


def _at_least(builder, number, one, other):
    """1 where an unsigned number is no smaller than the other, else 0."""
    return builder.zext(builder.icmp_unsigned(">=", one, other), one.type)


larger = _elementwise(_larger)
at_least = _elementwise(_at_least)
smaller = _elementwise(_smaller)  # of int32
plus = _elementwise(_sum)
minus = _elementwise(_difference)
times = _elementwise(_product)


@intrinsic
def where_larger(typing, one, other, chosen, else_chosen):
    """`chosen` in the lanes where `one`, of float32, is larger than `other`."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return chosen(one, other, chosen, else_chosen), generate


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
def of_pairs(typing, one, other):
    """int32 lanes that hold two int16 each: the sum of the two products.

    Said so that LLVM finds the instruction that does it in one step, which few processors lack.
    """

    def generate(context, builder, signature, args):
        narrow, wide = (ir.VectorType(ir.IntType(bits), 2 * LANES) for bits in (16, 32))
        product = builder.mul(*(builder.sext(builder.bitcast(pairs, narrow), wide) for pairs in args))
        undefined = ir.Constant(wide, ir.Undefined)
        first, second = (
            ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(at, 2 * LANES, 2))) for at in (0, 1)
        )
        return builder.add(
            builder.shuffle_vector(product, undefined, first), builder.shuffle_vector(product, undefined, second)
        )

    return one(one, other), generate


@intrinsic
def to_float32(typing, lanes):
    """int32 lanes as float32."""
    number = Lanes(types.float32)
    return number(lanes), lambda context, builder, signature, args: builder.sitofp(args[0], _vector(number))


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


@intrinsic
def reached(typing, one, other):
    """Bit l is set where lane l of whole numbers is no smaller than the other's."""

    def generate(context, builder, signature, args):
        compare = builder.icmp_signed if one.number.signed else builder.icmp_unsigned
        return builder.bitcast(compare(">=", *args), ir.IntType(32))

    return types.int32(one, other), generate


@intrinsic
def lowest_bit(typing, bits):
    """Which bit of an int32 that is not 0 is the lowest one set."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


@intrinsic
def word(typing, array, index):
    """WORD bytes of a contiguous array of bytes from `index`, the lowest first, as an int64."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer()), align=1)

    return types.int64(array, types.intp), generate


@intrinsic
def prefetch(typing, array, index):
    """Have the cache line with a contiguous array's element at flat position `index` on its way."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], _PREFETCH)
        builder.call(call, [pointer, *(ir.Constant(ir.IntType(32), of) for of in (0, 3, 1))])  # to read, soon, data
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


_PREFETCH = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3])


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
def product(rows_SH, matrix_HG, out_SG):
    """Float32 rows times a matrix, in order of H.

    As fast as BLAS on one thread. Several of BLAS's would spin for the next product, on the cores that the rest of the
    work wants.
    """
    S, H = rows_SH.shape
    out_SG[:] = 0
    for s in range(S):
        for h in range(H):
            factor = rows_SH[s, h]
            for g in range(matrix_HG.shape[1]):
                out_SG[s, g] += factor * matrix_HG[h, g]


@compiled
def highest_of(codes_T, start, stop, bytes_CL, l):
    """The highest bytes of some tokens, in the lanes from l on.

    Four maxima grow side by side: in one each would wait for the last, for longer than a row takes to arrive.
    """
    L = bytes_CL.shape[1]
    one = two = three = four = fill(np.uint8(0))
    for t in range(start, stop - 3, 4):
        one = larger(one, load(bytes_CL, np.intp(item(codes_T, t)) * L + l))
        two = larger(two, load(bytes_CL, np.intp(item(codes_T, t + 1)) * L + l))
        three = larger(three, load(bytes_CL, np.intp(item(codes_T, t + 2)) * L + l))
        four = larger(four, load(bytes_CL, np.intp(item(codes_T, t + 3)) * L + l))
    for t in range(max(start, stop - 3), stop):
        one = larger(one, load(bytes_CL, np.intp(item(codes_T, t)) * L + l))
    return larger(larger(one, two), larger(three, four))


@compiled
def approximate(positions_N, offsets_B1, codes_T, bytes_CL, score_N):
    """Score passages as if each token lay at its centroid. A passage with no token scores -1."""
    for n in range(len(positions_N)):
        start, stop = item(offsets_B1, positions_N[n]), item(offsets_B1, positions_N[n] + 1)
        for t in range(start, stop, LINE):
            prefetch(codes_T, t + FAR)
        score = 0
        for l in range(0, bytes_CL.shape[1], LANES):
            score += total(highest_of(codes_T, start, stop, bytes_CL, l))
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


def paired(vectors_NH: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Vectors in whole numbers of 16 bits, two to an int32 (N, P), and what 1 of these numbers stands for.

    None is longer than 32,767, so that the product of any two fits 32 bits.
    """
    unit = np.float32(np.linalg.norm(vectors_NH, axis=1).max(initial=1e-6) / 32767)
    return np.rint(vectors_NH / unit).astype(np.int16, order="C").view(np.int32), unit


def paired_query(q_LH: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """As `paired`, with the query tokens side by side: (P, L)."""
    q_LP, unit = paired(q_LH)
    return np.ascontiguousarray(q_LP.T), unit


@compiled
def centroid_table(centroids_CP, rows_N, q_PL, factor, table_CL):
    """Products of some centroids and the query tokens, both paired, times factor, as int16; other rows stay.

    Four centroids share the loads of a query, and none of their sums waits for the last product.
    """
    (P, L), last = q_PL.shape, len(rows_N) - 1
    by = fill(np.float32(factor))
    for n in range(0, len(rows_N), 4):
        a, b = np.intp(rows_N[n]), np.intp(rows_N[min(n + 1, last)])
        c, d = np.intp(rows_N[min(n + 2, last)]), np.intp(rows_N[min(n + 3, last)])
        for i in range(n + AHEAD, n + AHEAD + 4):
            for p in range(0, P, LINE):
                prefetch(centroids_CP, np.intp(rows_N[min(i, last)]) * P + p)
        for l in range(0, L, LANES):
            of_a = of_b = of_c = of_d = fill(np.int32(0))
            for p in range(P):
                query = load(q_PL, p * L + l)
                of_a = plus(of_a, of_pairs(query, fill(item(centroids_CP, a * P + p))))
                of_b = plus(of_b, of_pairs(query, fill(item(centroids_CP, b * P + p))))
                of_c = plus(of_c, of_pairs(query, fill(item(centroids_CP, c * P + p))))
                of_d = plus(of_d, of_pairs(query, fill(item(centroids_CP, d * P + p))))
            store(table_CL, a * L + l, to_int16(times(to_float32(of_a), by)))
            store(table_CL, b * L + l, to_int16(times(to_float32(of_b), by)))
            store(table_CL, c * L + l, to_int16(times(to_float32(of_c), by)))
            store(table_CL, d * L + l, to_int16(times(to_float32(of_d), by)))


@compiled
def byte_range(table_CL, rows_N, low_L, high_L):
    """What bytes of those rows go from and to: `low` of each query token, which is raised where 16 bits do not reach
    down to it, and `high`, the highest of its products. Returns how many bytes 2 ** 15 are, the same for all tokens.
    """
    L = table_CL.shape[1]
    span = 256  # a step is at least 1
    for l in range(0, L, LANES):
        high = fill(np.int16(-32768))
        for n in range(len(rows_N)):
            high = larger(high, load(table_CL, np.intp(rows_N[n]) * L + l))
        store(high_L, l, high)
    for l in range(L):
        low_L[l] = max(low_L[l], np.int32(high_L[l]) - 32767)
        span = max(span, np.int32(high_L[l]) - low_L[l])
        high_L[l] = max(high_L[l], low_L[l])
    return np.int32(255 * 32768 // span)


@compiled
def to_bytes(table_CL, rows_N, low_L, high_L, step, bytes_CL):
    """Those rows as bytes: 0 for `low` and less, at most 254 for `high` and more."""
    L = table_CL.shape[1]
    for l in range(0, L, LANES):
        low, high = load(low_L, l), load(high_L, l)
        for n in range(len(rows_N)):
            at = np.intp(rows_N[n]) * L + l
            value = minus(larger(smaller(load(table_CL, at), high), low), low)
            store(bytes_CL, at, to_uint8(scaled(value, step)))


@compiled
def missing(codes_N, known_C):
    """The centroids among these that are not known, ascending, so that what is read of them lies in order.

    known_C, filled up to a multiple of LANES, is 1 for those that are, and for these from now on.
    """
    asked_C = np.zeros(len(known_C), np.uint8)
    for n in range(len(codes_N)):
        asked_C[codes_N[n]] = 1
    missing_N = np.empty(len(known_C), np.int64)
    n = 0
    for l in range(0, len(known_C), LANES):
        known = load(known_C, l)
        new = reached(minus(larger(load(asked_C, l), known), known), fill(np.uint8(1)))
        if new:
            for c in range(l, l + LANES):
                if new >> (c - l) & 1:
                    missing_N[n], known_C[c] = c, 1
                    n += 1
    return missing_N[:n]


@compiled
def contenders(positions_N, offsets_B1, codes_T, bytes_CL, S, margin, row_K):
    """The tokens of some passages that, with their residuals, may be the nearest one to any of S query tokens.

    Those whose byte is at most `margin` below the highest of their passage. Their rows go to row_K, which has room for
    all; returned is where those of each passage start and end in it.
    """
    L = bytes_CL.shape[1]
    least_L = np.empty(L, np.uint8)
    offsets_N1 = np.zeros(len(positions_N) + 1, np.int64)
    by, k = fill(np.uint8(margin)), 0
    for n in range(len(positions_N)):
        start, stop = offsets_B1[positions_N[n]], offsets_B1[positions_N[n] + 1]
        for l in range(0, L, LANES):
            highest = highest_of(codes_T, start, stop, bytes_CL, l)
            store(least_L, l, minus(larger(highest, by), by))
        least_L[S:] = 255  # lanes filled up hold zeros, and reach nothing
        for t in range(start, stop):
            lanes = np.int32(0)
            for l in range(0, L, LANES):
                lanes |= reached(load(bytes_CL, np.intp(item(codes_T, t)) * L + l), load(least_L, l))
            row_K[k] = t  # overwritten by the next one where it does not stay
            k += lanes != 0
        offsets_N1[n + 1] = k
    return offsets_N1


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
def rerank(row_K, offsets_N1, codes_K, gains_K, residuals_TR, gain_of, table_CL, table_RWL, factor, score_N):
    """MaxSim of passages over some of their tokens, from codes: (centroid + residual) x gain, in 16-bit arithmetic.

    Passage n has rows offsets_N1[n] : offsets_N1[n + 1] of row_K. The tables are those of centroid_table and
    residual_table, made with this factor. Query tokens filled up have products of 0 everywhere, and add 0.
    """
    L = table_CL.shape[1]
    R, W = table_RWL.shape[:2]
    for n in range(len(score_N)):
        score = 0
        for l in range(0, L, LANES):
            highest = fill(np.int16(-32768))
            for k in range(item(offsets_N1, n), item(offsets_N1, n + 1)):
                prefetch(residuals_TR, item(row_K, min(k + AHEAD, len(row_K) - 1)) * R)
                value = load(table_CL, np.intp(item(codes_K, k)) * L + l)
                at = item(row_K, k) * R
                for r in range(R):
                    value = plus(value, load(table_RWL, (r * W + np.intp(item(residuals_TR, at + r))) * L + l))
                highest = larger(highest, scaled(value, item(gain_of, np.intp(item(gains_K, k)))))
            score += total(highest)
        score_N[n] = score / factor
    return score_N


@compiled
def rescore(positions_N, offsets_B1, vectors_TH, q_PL, factor, score_N):
    """MaxSim of some passages from 8-bit vectors and a paired query, times factor.

    Two tokens share the loads of a query; a passage of an odd number of tokens meets its last one twice.
    """
    P, L = q_PL.shape
    highest_L = np.empty(L, np.int32)
    token_2H = np.empty((2, 2 * P), np.int16)
    token_2P = token_2H.view(np.int32)
    for n in range(len(positions_N)):
        start, stop = offsets_B1[positions_N[n]], offsets_B1[positions_N[n] + 1]
        highest_L[:] = -(2**31)
        for t in range(start, stop, 2):
            u = min(t + 1, stop - 1)
            for h in range(2 * P):
                token_2H[0, h] = vectors_TH[t, h]
            for h in range(2 * P):
                token_2H[1, h] = vectors_TH[u, h]
            for l in range(0, L, LANES):
                one = other = fill(np.int32(0))
                for p in range(P):
                    query = load(q_PL, p * L + l)
                    one = plus(one, of_pairs(query, fill(token_2P[0, p])))
                    other = plus(other, of_pairs(query, fill(token_2P[1, p])))
                store(highest_L, l, larger(load(highest_L, l), larger(one, other)))
        score = np.int64(0)
        for l in range(L):
            score += highest_L[l]
        score_N[n] = score * factor
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
def nearest(x_TH, centroids_CH, code_T):
    """The centroid of largest product for each vector, the first of equal ones.

    As fast as BLAS on one thread. On several BLAS takes longer to share the products of a type of token than to make
    them: twenty times the CPU time. LANES vectors share the loads of two centroids.
    """
    T, H = x_TH.shape
    x_HL = np.zeros((H, LANES), np.float32)
    at_L = np.empty(LANES, np.int32)
    for t in range(0, T, LANES):
        n = min(LANES, T - t)
        for i in range(n):
            for h in range(H):
                x_HL[h, i] = x_TH[t + i, h]
        highest, at = fill(np.float32(-np.inf)), fill(np.int32(0))
        for c in range(0, len(centroids_CH), 2):
            d = min(c + 1, len(centroids_CH) - 1)
            one = other = fill(np.float32(0))
            for h in range(H):
                x = load(x_HL, h * LANES)
                one = plus(one, times(x, fill(centroids_CH[c, h])))
                other = plus(other, times(x, fill(centroids_CH[d, h])))
            at = where_larger(one, highest, fill(np.int32(c)), at)
            highest = larger(one, highest)
            at = where_larger(other, highest, fill(np.int32(d)), at)
            highest = larger(other, highest)
        store(at_L, 0, at)
        for i in range(n):
            code_T[t + i] = at_L[i]


@compiled
def nearest_codewords(x_TH, twice_RdW, square_RW, code_TR):
    """For each run of d dimensions the nearest of 256 codewords: |x - w|^2 = |x|^2 - 2 x w + |w|^2.

    twice_RdW are the codewords times -2. Two vectors share the loads of a codeword; of an odd number of vectors the
    last is met twice.
    """
    R, d, W = twice_RdW.shape
    for r in range(R):
        for t in range(0, len(x_TH), 2):
            u = min(t + 1, len(x_TH) - 1)
            one_square = other_square = np.float32(0)
            for h in range(r * d, (r + 1) * d):
                one_square += x_TH[t, h] * x_TH[t, h]
                other_square += x_TH[u, h] * x_TH[u, h]
            one_least = other_least = fill(np.int32(2**31 - 1))
            for w in range(0, W, LANES):
                square = load(square_RW, r * W + w)
                one, other = plus(square, fill(one_square)), plus(square, fill(other_square))
                for i in range(d):
                    codeword = load(twice_RdW, (r * d + i) * W + w)
                    one = plus(one, times(codeword, fill(x_TH[t, r * d + i])))
                    other = plus(other, times(codeword, fill(x_TH[u, r * d + i])))
                one_least = smaller(one_least, keyed(one, np.int32(w)))
                other_least = smaller(other_least, keyed(other, np.int32(w)))
            code_TR[t, r] = lowest(one_least) & 255
            code_TR[u, r] = lowest(other_least) & 255


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
def unpack(packed, n_bits, starts_N, stops_N, code_T):
    """Whole numbers of up to 32 bits from a string of at least WORD bytes, lowest bit first: runs, end to end."""
    mask, last = (np.int64(1) << n_bits) - 1, len(packed) - WORD
    at = 0
    for n in range(len(starts_N)):
        for t in range(starts_N[n], stops_N[n]):
            i = min((t * n_bits) >> 3, last)
            code_T[at] = (word(packed, i) >> (t * n_bits - 8 * i)) & mask
            at += 1


@compiled
def unpack_some(packed, n_bits, rows_N, code_N):
    """As unpack, of some rows."""
    mask, last = (np.int64(1) << n_bits) - 1, len(packed) - WORD
    for n in range(len(rows_N)):
        i = min((rows_N[n] * n_bits) >> 3, last)
        code_N[n] = (word(packed, i) >> (rows_N[n] * n_bits - 8 * i)) & mask


@compiled
def count_postings(codes_T, lengths_B, first, last_C, count_CP):
    """How many passages of each block have a token at each centroid; `first` is the position of the first passage.

    last_C, the passage counted last at each centroid, begins as -1.
    """
    t = 0
    for b in range(len(lengths_B)):
        position = first + b
        for _ in range(lengths_B[b]):
            c = codes_T[t]
            t += 1
            if last_C[c] != position:
                last_C[c] = position
                count_CP[c, position >> 16] += 1


@compiled
def fill_postings(codes_T, lengths_B, first, lowest, last_C, next_C, posting_N):
    """Passages of centroids lowest … lowest + len(next_C), without the bits that say the block, run by run.

    next_C is where the next passage of each run goes.
    """
    t = 0
    for b in range(len(lengths_B)):
        position = first + b
        for _ in range(lengths_B[b]):
            c = np.intp(codes_T[t]) - lowest
            t += 1
            if 0 <= c < len(next_C) and last_C[c] != position:
                last_C[c] = position
                posting_N[next_C[c]] = position & 65535
                next_C[c] += 1


@compiled
def highest(bytes_CL, rows_N, S, n, threshold_L):
    """Of these centroids those of the n highest bytes of each query token, and all that tie with the last.

    Returns cell_N and by how much the byte is above the lowest one chosen, plus 1, best first within each query token,
    and where each query token's run starts. Counts all lanes at once, eight times, to find the thresholds.
    """
    C, L = len(rows_N), bytes_CL.shape[1]
    least_L, most_L = np.zeros(L, np.int64), np.full(L, 256)  # threshold: least meets n, most does not
    count_L, part_L = np.empty(L, np.int64), np.empty(L, np.uint8)
    for _ in range(8):
        for l in range(L):
            threshold_L[l] = (least_L[l] + most_L[l]) // 2
        count_L[:] = 0
        for l in range(0, L, LANES):
            by = load(threshold_L, l)
            for c in range(0, C, 255):
                count = fill(np.uint8(0))
                for i in range(c, min(c + 255, C)):
                    count = plus(count, at_least(load(bytes_CL, np.intp(rows_N[i]) * L + l), by))
                store(part_L, l, count)
                for i in range(l, l + LANES):
                    count_L[i] += part_L[i]
        for l in range(L):
            if count_L[l] >= min(n, C):
                least_L[l] = (least_L[l] + most_L[l]) // 2
            else:
                most_L[l] = (least_L[l] + most_L[l]) // 2
    threshold_L[:] = least_L
    threshold_L[S:] = 255  # lanes filled up hold zeros, and are hardly ever met
    start_S1 = np.zeros(S + 1, np.int64)
    of_S256 = np.zeros((S, 257), np.int64)  # how many of each byte, from the highest down, to sort by counting
    for fills in range(2):
        if fills:
            for s in range(S):
                start_S1[s + 1] = start_S1[s] + of_S256[s].sum()
                at = start_S1[s]
                for v in range(257):
                    of_S256[s, v], at = at, at + of_S256[s, v]
            cell_N = np.empty(start_S1[S], np.int32)
            above_N = np.empty(start_S1[S], np.int32)
        for l in range(0, L, LANES):
            by = load(threshold_L, l)
            for c in rows_N:
                lanes = reached(load(bytes_CL, np.intp(c) * L + l), by)
                while lanes:
                    s = l + lowest_bit(lanes)
                    if s >= S:
                        break
                    lanes &= np.int32(lanes - 1)
                    value = np.intp(bytes_CL[c, s])
                    if fills:
                        cell_N[of_S256[s, 255 - value]] = c
                        above_N[of_S256[s, 255 - value]] = value - least_L[s] + 1
                    of_S256[s, 255 - value] += 1
    return cell_N, above_N, start_S1


@compiled
def ends_within(cell_N, start_S1, size_C, most):
    """Where the runs of centroids of each query token end, if they end once their lists hold `most` passages."""
    stop_S = start_S1[1:].copy()
    for s in range(len(stop_S)):
        held = 0
        for i in range(start_S1[s], start_S1[s + 1]):
            if held >= most:
                stop_S[s] = i
                break
            held += size_C[cell_N[i]]
    return stop_S


@compiled
def less_unseen(above_N, start_S1, stop_S, share):
    """Take from above_N what a passage in none of a query token's lists is thought to have: a share of the least.

    It is nearer to those of the last list than to nothing. At least 1 is left of what counts.
    """
    for s in range(len(stop_S)):
        unseen = np.int32(share * (above_N[stop_S[s] - 1] - 1))
        for i in range(start_S1[s], stop_S[s]):
            above_N[i] -= unseen


@compiled
def listed(cell_N, above_N, start_S, stop_S, posting_at, postings, n_blocks, blocks, gone_N, n):
    """The n passages of some blocks that the lists of the chosen centroids speak for most: positions and scores.

    For every query token a passage is given what the best of the chosen centroids that one of its tokens lies at is
    above. Positions ascend; ties at the last place go to the earlier, and passages of no list are left out, as are
    those of gone_N, which ascends. Block after block, so that what is added to stays in cache.
    """
    tally_B = np.empty(BLOCK, np.int32)  # the score, and in its lowest bits the last query token that added to it
    position_N, score_N = np.empty(n + BLOCK, np.int64), np.empty(n + BLOCK, np.int32)
    found, least, g, last = 0, 0, 0, len(cell_N) - 1
    for p in range(blocks[0], blocks[1]):
        tally_B[:] = 0
        for s in range(len(stop_S)):
            own = np.int32(s + 1)
            for i in range(start_S[s], stop_S[s]):
                coming = np.intp(item(posting_at, np.intp(item(cell_N, min(i + AHEAD, last))) * n_blocks + p))
                prefetch(postings, coming)
                prefetch(postings, coming + 2 * LINE)
                run = np.intp(item(cell_N, i)) * n_blocks + p
                adds = np.int32((item(above_N, i) << TOKEN_BITS) + own)
                for j in range(np.intp(item(posting_at, run)), np.intp(item(posting_at, run + 1))):
                    b = np.intp(item(postings, j))
                    tally = item(tally_B, b)
                    token = tally & np.int32((1 << TOKEN_BITS) - 1)
                    # No branch: which passages came before cannot be guessed.
                    put(tally_B, b, np.int32(tally + (adds - token)) if token != own else tally)
        while g < len(gone_N) and gone_N[g] < (p + 1) * BLOCK:
            if gone_N[g] >= p * BLOCK:
                tally_B[gone_N[g] - p * BLOCK] = 0
            g += 1
        enough = fill(np.int32((least + 1) << TOKEN_BITS))
        for b in range(0, BLOCK, LANES):
            lanes = reached(load(tally_B, b), enough)
            while lanes:
                i = b + lowest_bit(lanes)
                lanes &= np.int32(lanes - 1)
                position_N[found], score_N[found] = p * BLOCK + i, tally_B[i] >> TOKEN_BITS
                found += 1
        if found > n:
            some_N = best(score_N[:found], n)
            for i in range(n):
                position_N[i], score_N[i] = position_N[some_N[i]], score_N[some_N[i]]
            found, least = n, score_N[:n].min()
    return position_N[:found], score_N[:found]
