"""Products by NVIDIA's library (cuBLAS, through CuPy), in float32 or, rounded to TF32 or bfloat16, on tensor cores."""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, put, xp
from fastperm.kernels.cuda.pairs import Pairs, numbers_of_pair
from fastperm.kernels.cuda.pooling import THREADS
from fastperm.kernels.cuda.product_finish import four
from fastperm.kernels.cuda.vectors import aligned, round_bf16, store2, store4

_ONE_AND_ZERO = np.array([1, 0], np.float32)
ROUNDED = 8  # numbers that a thread rounds to bfloat16


def matmul(A, B, out, precision, *, A_turned=False, B_turned=False, adds=False):
    """Write A B, or Aᵀ B or A Bᵀ, by NVIDIA's library, in the precision that was asked for; or add it to ``out``.

    Factors in bfloat16 may be `Pairs`.
    """
    factors = [A, B]
    if precision == "bfloat16":
        factors = [factor.words if isinstance(factor, Pairs) else round_to_bf16(factor) for factor in factors]
    put(_gemm, *factors, A.shape, B.shape, out, precision, A_turned, B_turned, adds)


def _gemm(A, B, A_shape, B_shape, out, precision, A_turned, B_turned, adds):
    """Write, or add, the product of two matrices, of float32 or pairs of bfloat16, that lie row by row.

    What the library calls a matrix lies column by column: our rows are its columns, so it is asked for outᵀ = Bᵀ Aᵀ.
    """
    if SIMULATED:
        if precision == "bfloat16":
            A, B = numbers_of_bf16(A, A_shape), numbers_of_bf16(B, B_shape)
        found = xp().matmul(A.T if A_turned else A, B.T if B_turned else B)
        out[:] = out + found if adds else found
        return
    from cupy.cuda import cublas, device, runtime

    number = runtime.CUDA_R_16BF if precision == "bfloat16" else runtime.CUDA_R_32F
    # Whatever CuPy is set to (CUPY_TF32).
    compute_type = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if precision == "tf32" else cublas.CUBLAS_COMPUTE_32F
    one, zero = (_ONE_AND_ZERO[i:].ctypes.data for i in range(2))
    as_is = {False: cublas.CUBLAS_OP_N, True: cublas.CUBLAS_OP_T}
    (rows, columns), inner = out.shape, A_shape[0] if A_turned else A_shape[1]
    try:
        cublas.gemmEx(
            *(device.get_cublas_handle(), as_is[B_turned], as_is[A_turned], columns, rows, inner, one),
            *(B.data.ptr, number, B_shape[1], A.data.ptr, number, A_shape[1], one if adds else zero),
            *(out.data.ptr, runtime.CUDA_R_32F, columns, compute_type, cublas.CUBLAS_GEMM_DEFAULT),
        )
    except Exception as error:
        if "CUBLAS_STATUS_ALLOC_FAILED" in str(error):  # not an error of memory for CuPy
            raise MemoryError(str(error)) from error
        raise


def round_to_bf16(matrix, pairs=None):
    """Return a matrix in bfloat16, row by row, two numbers in what is called a float32; or write it to ``pairs``."""
    threads = -(-matrix.size // ROUNDED)
    if pairs is None:
        pairs = xp().empty(threads * ROUNDED // 2, np.float32)
    _round_to_bf16(-(-threads // THREADS), matrix, aligned(matrix, 4), matrix.size, pairs)
    return pairs


def numbers_of_bf16(pairs, shape):
    """Return what `round_to_bf16` has made of a matrix of a shape, in float32."""
    bits = pairs.view(np.uint16)[: shape[0] * shape[1]].astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


def in_float32(pairs):
    """Return what `Pairs` hold, (rows, columns) float32."""
    numbers = xp().empty(pairs.shape, np.float32)
    _in_float32(-(-numbers.size // (2 * THREADS)), pairs.words, numbers.size // 2, numbers)
    return numbers


@kernel("f4* i8 f4*", threads=THREADS)
def _in_float32(
    pairs,  # (size,)
    size,
    numbers,  # (2 size,)
):
    place = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if place < size:
        low, high = numbers_of_pair(pairs[place])
        store2(numbers, 2 * place, low, high)


@kernel("f4* i4 i8 f4*", threads=THREADS)
def _round_to_bf16(
    numbers,  # (size,)
    is_aligned,
    size,
    pairs,  # (size / 2,), rounded up to 4
):
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    first = unit * ROUNDED
    if first < size:
        left = size - first
        a0, a1, a2, a3 = four(numbers, first, left, is_aligned and left >= 4)
        b0, b1, b2, b3 = four(numbers, first + 4, left - 4, is_aligned and left >= ROUNDED)
        first_pairs, second_pairs = round_bf16(a0, a1), round_bf16(a2, a3)
        store4(pairs, first // 2, first_pairs, second_pairs, round_bf16(b0, b1), round_bf16(b2, b3))
