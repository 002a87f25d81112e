"""One set that is read in chunks, once for each pass over it, and never held as a whole."""

from collections import deque

import numpy as np

from fastperm.checks import check_real
from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS

# Of one block, in its input or its output: small beside what a process takes anyway, large beside what a call costs.
BLOCK_BYTES = 2**22


class Stream:
    """One set in chunks: checks them, and cuts them anew into blocks of a fixed number of rows.

    Parameters
    ----------
    chunks : callable or array-like of shape (T, features)
        A function without arguments, called once for each pass, that returns an iterable of arrays (n, features) or of
        pairs (values (n, features), weights (n,)). Or an array, such as a ``np.memmap``, that is read slice by slice.
    weights : array-like of shape (T,) or None
        Weights that go with an array.
    features : int
        Numbers per element.
    answers : int
        Numbers that are made of each element.
    dtype : numpy.dtype
        What values and weights are converted to.

    Raises
    ------
    TypeError, ValueError
        If the chunks are neither, or of another shape; in a pass, if a chunk is malformed (the message names it, and
        the row within it), the stream is empty, its weights have no positive sum, or passes differ in length.
    """

    def __init__(self, chunks, weights, features, answers, dtype):
        self.features, self.dtype = features, dtype
        self.block_rows = max(1, BLOCK_BYTES // (max(features, answers) * dtype.itemsize * STREAM_ROWS)) * STREAM_ROWS
        self._open = _opened_by(chunks, weights, features, self.block_rows)
        self._passes = 0
        self._n_elements = 0
        self._weighted = False

    def blocks(self, sizes=None):
        """Yield (values, weights or None) of one pass: `block_rows` rows each, the last one what is left.

        They are overwritten by the next ones. The number of rows of each chunk is appended to ``sizes`` when it comes.
        """
        x, w = np.empty((self.block_rows, self.features), self.dtype), np.empty(self.block_rows, self.dtype)
        filled = 0
        for values, weights in self._pass():
            if sizes is not None:
                sizes.append(len(values))
            taken = 0
            while taken < len(values):
                rows = min(len(values) - taken, self.block_rows - filled)
                x[filled : filled + rows] = values[taken : taken + rows]
                if weights is not None:
                    w[filled : filled + rows] = weights[taken : taken + rows]
                taken, filled = taken + rows, filled + rows
                if filled == self.block_rows:
                    yield x, w if self._weighted else None
                    filled = 0
        if filled:
            yield x[:filled], w[:filled] if self._weighted else None

    def map(self, function):
        """Yield what ``function`` makes of the blocks of one pass, rows for rows, cut as the chunks came."""
        sizes: deque[int] = deque()
        answer, filled = None, 0
        for x, _ in self.blocks(sizes):
            y, taken = function(x), 0
            while sizes:
                if answer is None:
                    answer, filled = np.empty((sizes[0], *y.shape[1:]), y.dtype), 0
                rows = min(len(answer) - filled, len(y) - taken)
                answer[filled : filled + rows] = y[taken : taken + rows]
                taken, filled = taken + rows, filled + rows
                if filled < len(answer):
                    break
                yield answer
                answer = None
                sizes.popleft()
        for _ in sizes:  # empty chunks at the end
            yield np.empty((0, *y.shape[1:]), y.dtype)

    def _pass(self):
        """Yield (values, weights or None) of every chunk, checked; afterwards, check the whole."""
        n_elements, total_weight = 0, 0.0
        for i, chunk in enumerate(self._open()):
            values, weights = self._checked(chunk, f"chunk {i}")
            if self._passes == 0 and i == 0:
                self._weighted = weights is not None
            if self._weighted != (weights is not None):
                wanted, found = ("(values, weights)", "values alone")[:: 1 if self._weighted else -1]
                raise ValueError(f"chunk {i}: expected {wanted} as in chunk 0, got {found}")
            n_elements += len(values)
            total_weight += len(values) if weights is None else float(weights.sum(dtype=np.float64))
            yield values, weights
        self._passes += 1
        if self._passes == 1:
            self._check_whole(n_elements, total_weight)
            self._n_elements = n_elements
        elif n_elements != self._n_elements:
            raise ValueError(
                f"pass {self._passes} over the chunks gave {n_elements} elements, the first one {self._n_elements}: "
                "each call of chunks must start anew; a generator can be read only once, so give the function that "
                "makes it"
            )

    def _check_whole(self, n_elements, total_weight):
        if n_elements == 0:
            raise ValueError("the stream has no elements: expected at least one")
        limits = np.finfo(self.dtype)
        if not limits.tiny <= total_weight <= limits.max:
            raise ValueError(
                f"weights must have a positive sum within the range of {self.dtype}, got a sum of {total_weight:g}"
            )

    def _checked(self, chunk, name):
        """Return the values and weights of a chunk in the dtype of the network."""
        weights = None
        if isinstance(chunk, tuple):
            if len(chunk) != 2:
                raise ValueError(f"{name}: expected an array or a pair (values, weights), got {len(chunk)} items")
            chunk, weights = chunk
        values = check_real(chunk, name, self.dtype)
        if values.ndim != 2 or values.shape[1] != self.features:
            raise ValueError(f"{name}: expected shape (n, {self.features}), got {values.shape}")
        finite = np.isfinite(values)
        if not finite.all():
            row, feature = np.argwhere(~finite)[0]
            raise ValueError(
                f"{name}, row {row}: values must be finite in {self.dtype}, got {values[row, feature]} "
                f"in feature {feature}"
            )
        if weights is None:
            return values, None
        weights = check_real(weights, f"{name}: weights", self.dtype)
        if weights.shape != (len(values),):
            raise ValueError(f"{name}: weights must have shape (n,) = ({len(values)},), got {weights.shape}")
        valid = (weights >= 0) & (weights < np.inf)
        if not valid.all():
            row = np.argmin(valid)
            raise ValueError(
                f"{name}, row {row}: weights must be finite in {self.dtype} and non-negative, got {weights[row]}"
            )
        return values, weights


def _opened_by(chunks, weights, features, block_rows):
    """Return a function that starts a new pass: an iterator over the chunks."""
    if callable(chunks):
        if weights is not None:
            raise TypeError("weights go with an array of values; a function yields pairs (values, weights) instead")
        return lambda: _iterated(chunks())
    if not (hasattr(chunks, "shape") and hasattr(chunks, "__getitem__")):
        raise TypeError(
            f"chunks must be an array of shape (T, {features}), or a function that returns the chunks anew for each "
            f"pass, got {type(chunks).__name__}; of a list, `lambda: chunks` makes one"
        )
    if len(chunks.shape) != 2 or chunks.shape[1] != features:
        raise ValueError(f"chunks: expected an array of shape (T, {features}), got {tuple(chunks.shape)}")
    if weights is not None and np.shape(weights) != chunks.shape[:1]:
        raise ValueError(f"weights must have shape (T,) = ({chunks.shape[0]},), got {np.shape(weights)}")

    def slices():
        for first in range(0, chunks.shape[0], block_rows):
            own = slice(first, first + block_rows)
            yield chunks[own] if weights is None else (chunks[own], weights[own])

    return slices


def _iterated(chunks):
    try:
        return iter(chunks)
    except TypeError:
        raise TypeError(f"chunks() must return an iterable of arrays, got {type(chunks).__name__}") from None
