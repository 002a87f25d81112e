"""A batch of weighted sets, stored as stacked rows with offsets: the one form of input that the network takes."""

from itertools import pairwise

import numpy as np

from fastperm.checks import check_array, check_dtype, check_real
from fastperm.kernels.arrays import module_of, on_gpu, on_host


class Sets:
    """A batch of S weighted sets: T elements of K features, stacked set after set.

    Set s is the rows ``offsets[s]:offsets[s + 1]`` of `values`, in an order that carries no meaning. An element of
    weight 2 is the same as that element listed twice, and one of weight 0 the same as leaving it out.

    Parameters
    ----------
    values : array_like, (T, K)
        Elements, float32 or float64. float16 becomes float32; integers and bools become float64.
    offsets : array_like of integers, (S + 1,)
        Bounds of the sets: from 0 to T, strictly increasing, since a set has at least one element.
    weights : array_like, (T,), optional
        Non-negative weights, with a positive total in every set; kept in the dtype of `values`. Without them every
        element counts once.

    Raises
    ------
    TypeError
        If an argument does not hold real numbers, or `offsets` no integers.
    ValueError
        If a shape is wrong, a set is empty, a value or weight is not finite, a weight is negative, or the total weight
        of a set is zero or out of the range of the dtype. The message names the set, and the element within it.
        All this holds for every constructor; below, `Raises` lists what comes on top.

    Notes
    -----
    The attributes `values`, `offsets` (int64) and `weights` are C-contiguous. The offsets are copied. `values` and
    `weights` of the right dtype and layout are held as they are, not copied, and treated as immutable: if they are
    changed afterwards, they are not checked again.

    What an element of weight 0 holds is computed with all the same, as a network without pooling answers for it, too.
    So it should not be so large that activations overflow, as a mark such as 3e38 is: infinity times 0 is NaN.
    `masked` leaves elements out.

    Values and weights may lie on an NVIDIA GPU: CuPy arrays, and whatever has ``__cuda_array_interface__`` or DLPack.
    They are checked and held there, as CuPy arrays, for networks of the cuda backend; `offsets` are NumPy's even so.

    Examples
    --------
    >>> sets = Sets([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], offsets=[0, 1, 3])
    >>> sets
    Sets(n_sets=2, n_elements=3, features=2, counts=1..2, float64, unweighted)
    >>> sets[1].values
    array([[3., 4.],
           [5., 6.]])
    """

    __slots__ = ("offsets", "values", "weights")

    def __init__(self, values, offsets, weights=None):
        self.values = check_real(values, "values", gpu=True)
        if self.values.ndim != 2:
            raise ValueError(f"values must have shape (T, K), got {self.values.shape}")
        if self.features == 0:
            raise ValueError(f"expected at least one feature per element, got values of shape {self.values.shape}")
        self.offsets = _checked_offsets(offsets, self.n_elements)
        finite = module_of(self.values).isfinite(self.values)
        if not finite.all():
            row, feature = np.argwhere(~on_host(finite))[0]
            raise ValueError(
                f"{_place(row, self.offsets)}: values must be finite in {self.dtype}, "
                f"got {self.values[row, feature]} in feature {feature}"
            )
        self.weights = None
        if weights is not None:
            self.weights = check_real(weights, "weights", self.dtype, gpu=True)
            _check_beside(self.weights, self.values, "weights", "values")
            if self.weights.shape != (self.n_elements,):
                raise ValueError(f"weights must have shape (T,) = ({self.n_elements},), got {self.weights.shape}")
            _check_weights(self.weights, self.offsets, "weights")

    @classmethod
    def _trusted(cls, values, offsets, weights):
        """Return the batch of arrays that are known to be valid, unchecked."""
        sets = cls.__new__(cls)
        sets.values, sets.offsets, sets.weights = values, offsets, weights
        return sets

    @classmethod
    def dense(cls, x, weights=None):
        """Return S sets of N elements each; a view of `x` where its dtype and layout suit. One set is ``x[None]``.

        Parameters
        ----------
        x : array_like, (S, N, K)
        weights : array_like, (S, N), optional

        Examples
        --------
        >>> Sets.dense(np.zeros((4, 5, 2), np.float32))
        Sets(n_sets=4, n_elements=20, features=2, counts=5, float32, unweighted)
        """
        x = check_real(x, "x", gpu=True)
        S, N, K = _dense_shape(x)
        if weights is not None:
            weights = _padded_weights(weights, S, N).reshape(S * N)
        return cls(x.reshape(S * N, K), N * np.arange(S + 1, dtype=np.int64), weights)

    @classmethod
    def ragged(cls, arrays, weights=None):
        """Return one set for each array of a list; the arrays are copied into one, unless there is only one.

        Parameters
        ----------
        arrays : iterable of array_like, (n_i, K)
            Their dtypes are promoted to a common one.
        weights : iterable of array_like, (n_i,), optional

        Raises
        ------
        ValueError
            If the arrays differ in width, or a set and its weights in length.

        Examples
        --------
        >>> Sets.ragged([np.zeros((3, 2)), np.ones((1, 2))]).counts
        array([3, 1])
        """
        return cls(*_stack_ragged(arrays, weights, "weights"))

    @classmethod
    def masked(cls, x, mask, weights=None):
        """Return the sets in a padded array: of each set, the elements where `mask` is True.

        Parameters
        ----------
        x : array_like, (S, N, K)
            What stands in the padding does not matter, NaN included. Only where nothing is padded is this not copied.
        mask : array_like of bools, or of integers 0 and 1, (S, N)
            True for an element that is present.
        weights : array_like, (S, N), optional
            What stands in the padding does not matter here either.

        Raises
        ------
        TypeError, ValueError
            If `mask` is not made of truth values. An element named in a message is counted among those present.

        Examples
        --------
        >>> x = np.array([[[1.0], [np.nan]], [[2.0], [3.0]]])
        >>> Sets.masked(x, [[True, False], [True, True]]).values
        array([[1.],
               [2.],
               [3.]])
        """
        x = check_real(x, "x", gpu=True)
        S, N, K = _dense_shape(x)
        mask = check_array(mask, "mask", gpu=True)
        _check_beside(mask, x, "mask", "x")
        if mask.shape != (S, N):
            raise ValueError(f"mask must have shape (S, N) = {(S, N)}, got {mask.shape}")
        if mask.dtype.kind not in "biu":
            raise TypeError(f"mask must be of bools, or of integers 0 and 1, got dtype {mask.dtype}")
        present = mask.astype(bool, copy=False)
        if (present != mask).any():
            s, n = np.argwhere(on_host(present != mask))[0]
            raise ValueError(f"set {s}, element {n}: mask must be True or False, 1 or 0, got {mask[s, n]}")
        counts = on_host(present.sum(axis=1))
        if not counts.all():
            raise ValueError(f"set {np.argmin(counts)} has no elements: the mask leaves out all {N}")
        if weights is not None:
            weights = _padded_weights(weights, S, N)
            _check_beside(weights, x, "weights", "x")
            weights = weights[present]
        return cls(x.reshape(S * N, K) if present.all() else x[present], _offsets_of(counts), weights)

    @classmethod
    def mixture(cls, atoms, fractions):
        """Return mixtures, the limits of infinite sets: of each, which elements it has and in what proportions.

        Parameters
        ----------
        atoms : iterable of array_like, (n_i, K)
        fractions : iterable of array_like, (n_i,)
            Non-negative numbers with a positive sum in every mixture. They are divided by that sum, so that the weights
            of a mixture add up to 1, whichever way the proportions were written: [1, 2] means [1/3, 2/3].

        Raises
        ------
        TypeError
            If there are no fractions; atoms that count alike are `ragged`.

        Examples
        --------
        >>> begonias_daffodils_peonies = [[0.0], [1.0], [2.0]]
        >>> Sets.mixture([begonias_daffodils_peonies], [[2, 3, 1]]).weights.round(3)
        array([0.333, 0.5  , 0.167])
        """
        if fractions is None:
            raise TypeError("fractions must hold the fractions of each mixture, got None")
        values, offsets, fractions = _stack_ragged(atoms, fractions, "fractions")
        totals = _check_weights(fractions, offsets, "fractions")
        repeated = module_of(fractions).asarray(np.repeat(totals, np.diff(offsets)))
        return cls(values, offsets, fractions / repeated)

    @classmethod
    def concatenate(cls, batches):
        """Return the sets of all batches in one; where only some have weights, the others' elements weigh 1.

        Parameters
        ----------
        batches : iterable of Sets
            Of one width K. Their dtypes are promoted to a common one.

        Raises
        ------
        TypeError, ValueError
            If an item is not a `Sets`, there is none, or their widths differ.

        Examples
        --------
        >>> pair = Sets.dense(np.zeros((2, 3, 1)))
        >>> Sets.concatenate([pair, pair]).n_sets
        4
        """
        batches = list(batches)
        if not batches:
            raise ValueError("expected at least one batch of sets to concatenate, got none")
        for i, batch in enumerate(batches):
            if not isinstance(batch, Sets):
                raise TypeError(f"batch {i}: expected a Sets, got {type(batch).__name__}")
            if batch.features != batches[0].features:
                raise ValueError(
                    f"batch {i}: expected K={batches[0].features} features per element as in batch 0, "
                    f"got {batch.features}"
                )
            _check_beside(batch.values, batches[0].values, f"batch {i}", "batch 0")
        xp = module_of(batches[0].values)
        values = xp.concatenate([batch.values for batch in batches])
        weights = None
        if any(batch.weights is not None for batch in batches):
            weights = xp.concatenate(
                [xp.ones(batch.n_elements) if batch.weights is None else batch.weights for batch in batches],
                dtype=values.dtype,
            )
        return cls._trusted(values, _offsets_of(np.concatenate([batch.counts for batch in batches])), weights)

    @property
    def n_sets(self):
        """Number of sets S."""
        return len(self.offsets) - 1

    @property
    def n_elements(self):
        """Number of elements T, in all sets together."""
        return self.values.shape[0]

    @property
    def features(self):
        """Number of features K of an element."""
        return self.values.shape[1]

    @property
    def dtype(self):
        """Dtype of the values and weights."""
        return self.values.dtype

    @property
    def counts(self):
        """Number of elements of each set: (S,) int64."""
        return np.diff(self.offsets)

    @property
    def totals(self):
        """Total weight W_s of each set: (S,) float64; the counts where there are no weights."""
        return self.counts.astype(np.float64) if self.weights is None else _totals(self.weights, self.offsets)

    def __repr__(self):
        least, most = self.counts.min(), self.counts.max()
        return (
            f"Sets(n_sets={self.n_sets}, n_elements={self.n_elements}, features={self.features}, "
            f"counts={least if least == most else f'{least}..{most}'}, {self.dtype}, "
            f"{'unweighted' if self.weights is None else 'weighted'})"
        )

    def __array__(self, dtype=None, copy=None):
        # Without this, NumPy would take the batch for a sequence of sequences without end.
        raise TypeError("a Sets cannot be one array: take its values, or join several with Sets.concatenate")

    def __len__(self):
        return self.n_sets

    def __iter__(self):
        return (self[s] for s in range(self.n_sets))

    def __getitem__(self, index):
        """Return the chosen sets: by an integer, a slice, a list of integers or one bool per set.

        One set, or a slice of step 1, is a view; the others copy. An index out of range, and one that selects no set,
        is an IndexError.
        """
        chosen = np.arange(self.n_sets)[index] if isinstance(index, slice) else _checked_index(index, self.n_sets)
        if chosen.size == 0:
            raise IndexError(f"expected an index that selects at least one of the {self.n_sets} sets, got {index!r}")
        if chosen.ndim == 0 or (isinstance(index, slice) and index.step in (None, 1)):
            bounds = self.offsets[chosen.flat[0] : chosen.flat[-1] + 2]
            offsets, rows = bounds - bounds[0], slice(bounds[0], bounds[-1])
        else:
            offsets = _offsets_of(self.counts[chosen])
            rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], np.diff(offsets))
            rows = module_of(self.values).asarray(rows)
        return self._trusted(self.values[rows], offsets, None if self.weights is None else self.weights[rows])

    def permutation(self, seed=None):
        """Return an order of the rows that shuffles the elements within every set: (T,) int64.

        Parameters
        ----------
        seed : int, numpy.random.Generator or None
            The same integer always gives the same order, None a fresh one.

        Examples
        --------
        >>> order = Sets.dense(np.zeros((2, 3, 1))).permutation(0)
        >>> sorted(order[:3].tolist()), sorted(order[3:].tolist())
        ([0, 1, 2], [3, 4, 5])
        """
        keys = np.random.default_rng(seed).random(self.n_elements)
        return np.lexsort((keys, np.repeat(np.arange(self.n_sets), self.counts)))

    def permute(self, seed=None):
        """Return the same sets with their elements, and the weights with them, in the order ``permutation(seed)``."""
        return self._reorder(self.permutation(seed))

    def reorder(self, order):
        """Return the same sets with their elements, and the weights with them, in another order.

        Parameters
        ----------
        order : array_like of integers, (T,)
            Row ``order[i]`` becomes row i. Every row occurs once, and within its set.

        Raises
        ------
        TypeError, ValueError
            If `order` is not made of integers, or no such order.

        Examples
        --------
        >>> sets = Sets([[1.0], [2.0], [3.0]], offsets=[0, 1, 3])
        >>> sets.reorder([0, 2, 1]).values.ravel()
        array([1., 3., 2.])
        """
        order = check_array(order, "order")
        if order.shape != (self.n_elements,):
            raise ValueError(f"order must have shape (T,) = ({self.n_elements},), got {order.shape}")
        if order.dtype.kind not in "iu":
            raise TypeError(f"order must be integers, got dtype {order.dtype}")
        first, last = (np.repeat(bounds, self.counts) for bounds in (self.offsets[:-1], self.offsets[1:]))
        within = (first <= order) & (order < last)
        if not within.all():
            row = np.argmin(within)
            raise ValueError(
                f"{_place(row, self.offsets)}: order must keep rows within their set, here rows {first[row]} to "
                f"{last[row] - 1}, got {order[row]}"
            )
        order = order.astype(np.int64, copy=False)
        times = np.bincount(order, minlength=self.n_elements)
        if times.max() > 1:
            row = np.argmax(times)
            raise ValueError(f"{_place(row, self.offsets)}: order must list each row once, got row {row} {times[row]}x")
        return self._reorder(order)

    def _reorder(self, order):
        """Return the sets in an order that is known to be valid, unchecked."""
        order = module_of(self.values).asarray(order)
        return self._trusted(self.values[order], self.offsets, None if self.weights is None else self.weights[order])

    def astype(self, dtype):
        """Return the batch with values and weights in float32 or float64; itself if they are already.

        Raises
        ------
        ValueError
            If `dtype` is another one, a value is too large for it, or the total weight of a set out of its range.
        """
        dtype = check_dtype(dtype)
        if dtype == self.dtype:
            return self
        return Sets(check_real(self.values, "values", dtype, gpu=True), self.offsets, self.weights)

    def split(self, rows):
        """Cut one row per element, such as the output of an equivariant network, into one array per set.

        Parameters
        ----------
        rows : array_like, (T, ...)

        Returns
        -------
        list of S ndarrays, (n_s, ...)
            Views of `rows`.

        Examples
        --------
        >>> sets = Sets(np.zeros((3, 1)), offsets=[0, 1, 3])
        >>> sets.split(["a", "b", "c"])
        [array(['a'], dtype='<U1'), array(['b', 'c'], dtype='<U1')]
        """
        rows = rows if on_gpu(rows) else np.asarray(rows)
        if rows.shape[:1] != (self.n_elements,):
            raise ValueError(f"expected one row for each of the {self.n_elements} elements, got shape {rows.shape}")
        return [rows[start:stop] for start, stop in pairwise(self.offsets.tolist())]


def as_sets(x, *, features=None, dtype=None):
    """Return whatever holds a batch of sets as `Sets`, without a copy where none is needed.

    Parameters
    ----------
    x : Sets, array_like (S, N, K), or list, tuple, iterator, or array of objects, of array_like (n_i, K)
    features : int, optional
        The number K of features that an element must have.
    dtype : {float32, float64}, optional
        What to convert to; by default, the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `Sets`; also if `x` has another number of dimensions or of features.

    Examples
    --------
    >>> as_sets([np.zeros((3, 2)), np.zeros((1, 2))], features=2)
    Sets(n_sets=2, n_elements=4, features=2, counts=1..3, float64, unweighted)
    """
    if isinstance(x, Sets):
        sets = x
    elif isinstance(x, (list, tuple)) or hasattr(x, "__next__") or _of_objects(x):
        sets = Sets.ragged(x)
    else:
        sets = Sets.dense(x)
    if features is not None and sets.features != features:
        raise ValueError(f"expected K={features} features per element, got {sets.features}")
    return sets if dtype is None else sets.astype(dtype)


def _of_objects(x):
    """Return whether x is a row of objects: what NumPy makes of arrays that differ, or a column of a table."""
    return getattr(x, "dtype", None) == np.dtype(object) and getattr(x, "ndim", 0) == 1


def _padded_weights(weights, S, N):
    weights = check_real(weights, "weights", gpu=True)
    if weights.shape != (S, N):
        raise ValueError(f"weights must have shape (S, N) = {(S, N)}, got {weights.shape}")
    return weights


def _dense_shape(x):
    if x.ndim != 3:
        hint = "; pass x[None] for one set of N elements" if x.ndim == 2 else ""
        raise ValueError(f"expected an array of shape (S, N, K), got {x.shape}{hint}")
    return x.shape


def _offsets_of(counts):
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _checked_offsets(offsets, n_elements):
    offsets = on_host(check_array(offsets, "offsets", gpu=True))
    if offsets.ndim != 1 or offsets.size == 0:
        raise ValueError(f"offsets must have shape (S + 1,), got {offsets.shape}")
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"offsets must be integers, got dtype {offsets.dtype}")
    if offsets.size == 1:
        raise ValueError(f"expected at least one set, got none: offsets of shape {offsets.shape}")
    if offsets[0] != 0:
        raise ValueError(f"offsets must start at 0 for set 0, got {offsets[0]}")
    grows = offsets[1:] > offsets[:-1]
    if not grows.all():
        s = np.argmin(grows)
        if offsets[s] == offsets[s + 1]:
            raise ValueError(f"set {s} has no elements: it starts and ends at offset {offsets[s]}")
        raise ValueError(f"set {s}: offsets must not decrease, got {offsets[s]} and then {offsets[s + 1]}")
    if offsets[-1] != n_elements:
        raise ValueError(
            f"offsets must end at T = {n_elements}, the number of elements, got {offsets[-1]} "
            f"as the end of set {offsets.size - 2}"
        )
    return np.array(offsets, np.int64)  # a copy: kernels rely on what was checked here


def _checked_index(index, n_sets):
    """Return the sets that an integer, integers or bools choose, as an array of none or one dimension."""
    try:
        chosen = np.asarray(index)
    except ValueError:  # lists of differing lengths
        chosen = np.asarray(None)
    if chosen.dtype == bool and chosen.shape == (n_sets,):
        return np.flatnonzero(chosen)
    if chosen.shape == (0,):
        return chosen
    if chosen.dtype.kind not in "iu" or chosen.ndim > 1 or isinstance(index, tuple):
        raise IndexError(
            f"expected an integer, a slice, a list of integers or one bool for each of the {n_sets} sets as index, "
            f"got {index!r}"
        )
    outside = (chosen < -n_sets) | (chosen >= n_sets)
    if outside.any():
        raise IndexError(f"set {chosen[outside][0]} is out of range: there are {n_sets} sets")
    return np.asarray(chosen, np.int64) % n_sets


def _place(row, offsets):
    s = np.searchsorted(offsets, row, side="right") - 1
    return f"set {s}, element {row - offsets[s]}"


def _totals(weights, offsets):
    xp = module_of(weights)
    with np.errstate(over="ignore"):  # checked on construction
        return on_host(xp.add.reduceat(weights, xp.asarray(offsets[:-1]), dtype=np.float64))


def _check_beside(array, other, name, other_name):
    """Refuse one array on a GPU and another on the host: which should move is for the user to say."""
    if on_gpu(array) != on_gpu(other):
        places = ["a GPU" if on_gpu(one) else "the host" for one in (array, other)]
        raise TypeError(f"{name} lies on {places[0]} and {other_name} on {places[1]}; give both in one place")


def _check_weights(weights, offsets, name):
    """Return the total of each set, which must be a normal number in the dtype of the weights, since it divides."""
    valid = (weights >= 0) & (weights < np.inf)
    if not valid.all():
        row = int(valid.argmin())
        raise ValueError(
            f"{_place(row, offsets)}: {name} must be finite in {weights.dtype} and non-negative, got {weights[row]}"
        )
    totals = _totals(weights, offsets)
    valid = (totals >= np.finfo(weights.dtype).tiny) & (totals <= np.finfo(weights.dtype).max)
    if not valid.all():
        s = np.argmin(valid)
        raise ValueError(
            f"set {s}: {name} must have a positive sum within the range of {weights.dtype}, got a sum of {totals[s]:g}"
        )
    return totals


def _stack_ragged(arrays, weights, name):
    """Return values, offsets and weights of one set per array; the weights unchecked but for their shapes."""
    arrays = [check_real(array, f"set {s}", gpu=True) for s, array in enumerate(arrays)]
    if not arrays:
        raise ValueError("expected at least one set, got none")
    for s, array in enumerate(arrays):
        _check_beside(array, arrays[0], f"set {s}", "set 0")
        if array.shape[:1] == (0,):
            raise ValueError(f"set {s} has no elements: expected shape (n, K), got {array.shape}")
        if array.ndim != 2:
            raise ValueError(f"set {s}: expected an array of shape (n, K), got {array.shape}; one set alone is [x]")
        K = arrays[0].shape[1]
        if array.shape[1] != K:
            raise ValueError(f"set {s}: expected K={K} features per element as in set 0, got {array.shape[1]}")
    if weights is not None:
        weights = [check_real(row, f"set {s}: {name}", np.float64, gpu=True) for s, row in enumerate(weights)]
        if len(weights) != len(arrays):
            raise ValueError(f"expected {name} for each of the {len(arrays)} sets, got {len(weights)}")
        for s, (array, row) in enumerate(zip(arrays, weights, strict=True)):
            _check_beside(row, array, f"set {s}: {name}", "its values")
            if row.shape != (len(array),):
                raise ValueError(f"set {s}: {name} must have shape (n,) = ({len(array)},), got {row.shape}")
        weights = module_of(weights[0]).concatenate(weights)
    values = arrays[0] if len(arrays) == 1 else module_of(arrays[0]).concatenate(arrays)
    return values, _offsets_of([len(array) for array in arrays]), weights
