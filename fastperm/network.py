"""The set network: equivariant layers, pooling, and a dense head."""

import logging
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fastperm import backend as backends
from fastperm.checks import check_choice, check_device, check_dtype, check_generator, check_integer, check_kernels
from fastperm.kernels import reference
from fastperm.kernels.arrays import beside, module_of, on_host
from fastperm.kernels.reference.deep_set import layer_shapes, split_angles
from fastperm.layers import AGGREGATES, Angular, Dense, Equivariant, Pooling, PoolingSaved, initialise
from fastperm.losses import as_targets
from fastperm.parameters import Parameters
from fastperm.sets import Sets, as_sets
from fastperm.streams import Stream
from fastperm.symmetries import Symmetries

INVARIANCES = ("rounding", "bitwise")
PRECISIONS = ("float32", "tf32", "bfloat16")
# Attributes of a network that its layers and arrays follow from.
_FIXED = frozenset(
    (
        *("in_features", "widths", "depth", "out_features", "aggregate", "pool", "symmetry", "orders", "scale"),
        *("dtype", "backend", "parameters", "gradients", "layers", "pooling", "head"),
    )
)
# All that `DeepSet` keeps; whatever else it has, somebody added.
_OWN = _FIXED | {"invariance", "precision", "kernels", "_symmetries", "_recorded"}
_logger = logging.getLogger("fastperm")


class Saved(NamedTuple):
    """What a network keeps of a forward pass for the backward pass."""

    sets: Sets  # as the kernels saw them: in that order, and divided by their scales
    order: Any  # (T,) rows of the batch in that order; None where it is as it came
    layers: tuple  # an EquivariantSaved or AngularSaved for each layer
    pooling: PoolingSaved | None
    head: Any  # (S, K) input of the head, or (T, K) without pooling
    made_by: dict  # `DeepSet.config` of the network
    E: Any = None  # (T, 2M) harmonics of the angles; None without
    scales: Any = None  # (S,) what the values were divided by; None for nothing


class DeepSet:
    """Network on sets: equivariant ReLU layers, pooling over the set, one dense layer.

    Parameters
    ----------
    in_features : int
        K_in, numbers per element.
    width : int or sequence of int
        Width of every equivariant layer, or one per layer.
    depth : int
        Number of equivariant layers.
    out_features : int
        K_fin, numbers per set (per element if ``pool`` is None).
    aggregate : {"mean", "sum", "max"}, default="mean"
        What every element sees of its set, in every layer. The harmonics of a network on the circle go with mean and
        sum; a maximum has none.
    pool : {"mean", "sum", "max"} or None, default="mean"
        How elements become one vector per set before the head. None keeps the network equivariant: the head acts on
        every element.
    invariance : {"rounding", "bitwise"}, default="rounding"
        How exactly the order of the elements does not matter: to within rounding, or to the last bit, in predictions
        and in gradients. For "bitwise", elements are brought into one order first (see ``docs/architecture.md``).
    symmetry : {None, "circle"}, default=None
        "circle" makes the first column of the input an angle in radians, and the prediction exactly invariant (or, if
        ``pool`` is None, that of each element) to a common shift of all angles of a set: layers see their differences
        only, through filters of the orders 1 … ``orders`` (``kernels/reference/angular.py``). The other columns are
        features, of which there must be one: a column of ones will do for sets of angles alone. Angles may have any
        size, but float32 holds small ones best.
    orders : int or None, default=None
        M, the highest order of the angular filters; None is 8 with a circle. With 0, angles are ignored, and what is
        left is the plain network on the features.
    scale : {None, "rms"}, default=None
        "rms" divides the values of each set, which are all columns but the first, its positions, by their weighted root
        mean square r, and adds 2 ln r to the predictions. This is exact for whatever grows by 2 ln c where a function
        is multiplied by c, such as the logarithm of a power. A set with r = 0, or below 1e-145, is taken as it is, as
        if r were 1.
    dtype : {"float32", "float64"}, default="float32"
        Precision of parameters and arithmetic.
    backend : {"auto", "reference", "cpu", "cuda"}, default="auto"
        Kernels to use; "auto" takes the fastest that is available. "cuda" is for float32 only, and takes sets,
        targets and gradients as NumPy arrays, or as arrays on its GPU: then what comes back stays there, as CuPy's.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of predictions and training steps on the cuda backend. For "tf32" and "bfloat16" tensor cores multiply elements
        with W_self, and what goes back. Both factors are rounded to the nearest number that has, besides its leading
        bit, 10 bits of mantissa for "tf32" (a relative error of at most 2^-11, 5e-4) and 7 for "bfloat16" (2^-8, 4e-3);
        they are added up in float32. Everything else stays in float32: activations, pooled vectors, the head,
        parameters, Adam, layers narrower than 16 where a set does not fit on chip, and `forward`, `backward` and
        `predict_stream`. But wide layers may be kept in bfloat16 (`explain` says where): after their sums were taken,
        activations and their gradients are rounded as products round them, and so is, at the first layer, the gradient
        that x is multiplied by. Not part of a saved network.
    seed : int, numpy.random.Generator or None, default=None
        Where the initial weights come from; None draws fresh ones.

    Attributes
    ----------
    in_features, depth, out_features, aggregate, pool, symmetry, orders, scale, dtype, backend
        As above. They cannot be changed: the layers have been made.
    parameters, gradients : dict of str to ndarray
        ``layers.0.self``, ``layers.0.pool`` (K_in, K_out), ``layers.0.bias`` (K_out,), …, ``head.weight``,
        ``head.bias``; on the circle also ``layers.0.cos`` and ``layers.0.sin`` (M, K_in, K_out). Assigning to a name
        copies into its array. CuPy arrays on the cuda backend.
    widths : tuple of int
        Width of each equivariant layer.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.
        TypeError also if the backend does not compute in this dtype.
    RuntimeError
        If the backend is not available here.

    References
    ----------
    Zaheer et al. 2017, "Deep Sets"; Guttenberg et al. 2016, "Permutation-equivariant neural networks applied to
    dynamics prediction". Thomas et al. 2018, "Tensor field networks": the network on the circle is one.

    Examples
    --------
    >>> import numpy as np, fastperm
    >>> net = fastperm.DeepSet(in_features=2, width=16, depth=2, out_features=4, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((3, 10, 2))
    >>> net(x).shape
    (3, 4)
    >>> net = fastperm.DeepSet(2, 16, 2, 4, symmetry="circle", orders=3, dtype="float64", seed=0)
    >>> bool(np.allclose(net(x + [0.7, 0]), net(x), rtol=0, atol=1e-12))
    True
    """

    def __init__(
        self,
        in_features,
        width,
        depth,
        out_features,
        *,
        aggregate="mean",
        pool="mean",
        invariance="rounding",
        symmetry=None,
        orders=None,
        scale=None,
        dtype="float32",
        backend="auto",
        precision="float32",
        seed=None,
    ):
        self.in_features = check_integer(in_features, "in_features", minimum=1)
        self.out_features = check_integer(out_features, "out_features", minimum=1)
        self.depth = check_integer(depth, "depth", minimum=1)
        self.widths = _check_widths(width, self.depth)
        self.aggregate = check_choice(aggregate, "aggregate", AGGREGATES)
        self.pool = check_choice(pool, "pool", (*AGGREGATES, None))
        self.invariance = check_choice(invariance, "invariance", INVARIANCES)
        self._symmetries = Symmetries.checked(self.in_features, symmetry, orders, scale, self.aggregate, self.pool)
        _, self.symmetry, self.orders, self.scale = self._symmetries
        self.dtype = check_dtype(dtype)
        self.backend = backends.resolve(backend, self.dtype)
        self.kernels = backends.get(self.backend)
        self.precision = check_choice(precision, "precision", PRECISIONS)
        if self.precision != "float32" and self.backend != "cuda":
            raise ValueError(
                f"precision={precision!r} is for the cuda backend, and this network is on {self.backend!r}"
            )

        inputs = (self._symmetries.features, *self.widths)
        shapes = {
            f"layers.{i}.{name}": shape
            for i in range(self.depth)
            for name, shape in layer_shapes(inputs[i], inputs[i + 1], self.orders).items()
        }
        shapes |= {f"head.{name}": shape for name, shape in Dense.shapes(inputs[-1], self.out_features).items()}
        self.parameters = Parameters(shapes, self.kernels, self.dtype)
        self.gradients = self.parameters.like()
        layer = Angular if self.orders else Equivariant
        self.layers = tuple(layer(*self._part(f"layers.{i}."), self.kernels, self.aggregate) for i in range(self.depth))
        self.pooling = None if self.pool is None else Pooling(self.kernels, self.pool)
        self.head = Dense(*self._part("head."), self.kernels)
        self._initialise(check_generator(seed))
        self._recorded: OrderedDict = OrderedDict()  # of `train_step`, on a GPU

    def __setattr__(self, name, value):
        if name in _FIXED and "_recorded" in vars(self):
            raise AttributeError(f"{name} of a network cannot be changed: its layers have been made; make another one")
        super().__setattr__(name, value)

    def config(self):
        """Return the constructor's arguments, without backend, precision and seed, as plain JSON-able values."""
        return {
            "in_features": self.in_features,
            "width": list(self.widths),
            "depth": self.depth,
            "out_features": self.out_features,
            "aggregate": self.aggregate,
            "pool": self.pool,
            "invariance": self.invariance,
            "symmetry": self.symmetry,
            "orders": self.orders if self.symmetry else None,
            "scale": self.scale,
            "dtype": self.dtype.name,
        }

    def __repr__(self):
        settings = {**self.config(), "backend": self.backend, **self._settings()}
        if len(set(self.widths)) == 1:
            settings["width"] = self.widths[0]
        return f"DeepSet({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    @property
    def n_parameters(self):
        """Number of trainable numbers."""
        return self.parameters.flat.size

    def as_sets(self, sets):
        """Return anything array-like as `Sets` of this network's width and dtype (see `fastperm.sets.as_sets`)."""
        return as_sets(sets, features=self.in_features, dtype=self.dtype)

    def prediction_shape(self, sets):
        """Return the shape of the prediction for ``sets``: a row per set, or per element without pooling."""
        return (sets.n_elements if self.pool is None else len(sets), self.out_features)

    def __call__(self, sets):
        """Return the predictions.

        Parameters
        ----------
        sets : Sets or array-like
            A `Sets`, an array (S, N, in_features), or a list of arrays (n_i, in_features).

        Returns
        -------
        ndarray of shape (S, out_features)
            One row per set; (T, out_features), one row per element, if ``pool`` is None (`Sets.split` cuts it back
            into sets).

        Raises
        ------
        ValueError
            If the sets are malformed or of another width; the message names the set.
        MemoryError
            If not even one set fits in memory. A batch that does not fit is taken in halves.
        """
        return self._predict(self.as_sets(sets))

    def predict_stream(self, chunks, *, weights=None):
        """Return the prediction for one set that does not fit in memory.

        The set is read once per layer, and once more (twice with ``scale="rms"``), in chunks of which only one is held
        at a time. The result does not depend on how the set is cut, not in a bit.

        Parameters
        ----------
        chunks : callable or array-like of shape (T, in_features)
            A function without arguments, called for each pass, that returns the chunks: an iterable of arrays
            (n, in_features), n ≥ 0, or of pairs (values (n, in_features), weights (n,)); a generator function, for
            example. Or an array that is read slice by slice, such as a ``np.memmap``.
        weights : array-like of shape (T,), optional
            Weights of the elements, where ``chunks`` is an array.

        Returns
        -------
        ndarray of shape (out_features,)
            The prediction. If ``pool`` is None, an iterator of arrays (n, out_features) instead, one per chunk (per
            slice that was read of an array): the passes that pool are made at once, the last one as it goes.

        Raises
        ------
        ValueError
            If a chunk is malformed (the message names it, and the row within it), there are no elements or no positive
            weight, passes differ in length, or ``invariance`` is "bitwise".
        TypeError
            If the chunks are neither an array nor a function, or do not hold real numbers.

        Examples
        --------
        >>> import numpy as np, fastperm
        >>> net = fastperm.DeepSet(in_features=2, width=16, depth=2, out_features=4, seed=0)
        >>> def chunks():
        ...     for seed in range(5):
        ...         yield np.random.default_rng(seed).standard_normal((1000, 2))
        >>> net.predict_stream(chunks).shape
        (4,)
        """
        if self.invariance == "bitwise":
            raise ValueError(
                "invariance='bitwise' sorts the elements of a set, and a stream cannot be sorted: call the network on "
                "the whole set, or make one of the same parameters with invariance='rounding'"
            )
        stream = Stream(chunks, weights, self.in_features, self.out_features, self.dtype)
        parameters, widths, aggregate, pool, orders = self._whole()
        parameters = parameters.copy()  # the last pass may come later, after further training
        xp = self.kernels.xp
        c = xp.empty((self.depth * (1 + 2 * orders), max(widths)), self.dtype)
        y = xp.empty((1, self.out_features), self.dtype)
        symmetries = self._symmetries
        scales = symmetries.stream_scales(stream.blocks())

        def blocks():
            for x, w in stream.blocks():
                yield symmetries.columns(x, scales, w), w

        self.kernels.deep_set_stream_pool(
            *(blocks, parameters, widths, aggregate, pool, orders), c=c, y=None if pool is None else y
        )
        if pool is not None:
            return symmetries.shifted(on_host(y), scales, reference)[0]

        def answer(x):
            y = xp.empty((len(x), self.out_features), self.dtype)
            self.kernels.deep_set_stream_rows(symmetries.columns(x, scales), parameters, widths, c, orders, y=y)
            return on_host(y)

        return stream.map(answer)

    def forward(self, sets):
        """Return the predictions and what `backward` needs.

        Parameters
        ----------
        sets : Sets or array-like
            As in `__call__`.

        Returns
        -------
        y : ndarray of shape (S, out_features)
            The predictions; (T, out_features) without pooling.
        saved : Saved
            Inputs and activations.
        """
        given = self.as_sets(sets)
        sets, order, scales = self._prepared(given)
        E, x = split_angles(sets.values, self.orders, self.kernels.angular_basis, self.kernels.xp.empty)
        kept, pooling, shared = [], None, {"E": E} if self.orders else {}
        for layer in self.layers:
            x, saved = layer.forward(x, sets, **shared)
            kept.append(saved)
        if self.pooling is not None:
            x, pooling = self.pooling.forward(x, sets)
        y, head = self.head.forward(x)
        if self.pool is None:
            y = self._as_given(y, order)
        saved = Saved(sets, order, tuple(kept), pooling, head, DeepSet.config(self), E, scales)
        return beside(self._symmetries.shifted(y, scales, self.kernels), given.values), saved

    def loss_and_gradients(self, sets, targets):
        """Return the mean squared error, and make `gradients` those of this batch: one pass, nothing saved.

        Parameters
        ----------
        sets : Sets or array-like
            As in `__call__`.
        targets : array-like of the shape of the prediction
            What the network should predict.

        Returns
        -------
        float
            Mean over all predicted numbers, summed in float64.

        Raises
        ------
        ValueError
            If sets or targets have the wrong shape.
        TypeError
            If they do not hold real numbers.
        MemoryError
            If not even one set fits in memory. A batch that does not fit is taken in halves.
        """
        return float(self._loss_and_gradients(sets, targets))

    def _loss_and_gradients(self, sets, targets):
        """Do the same, but return the loss of the cuda backend as an array on the GPU, for which nobody has waited."""
        sets = self.as_sets(sets)
        targets = as_targets(targets, self.prediction_shape(sets), self.dtype)
        return self._step(sets, check_kernels(targets, "targets", self.kernels))

    def backward(self, dy, saved, *, inputs=True):
        """Add the gradients of the parameters to `gradients` and return that of the input.

        Parameters
        ----------
        dy : array-like of the shape of the prediction
            Gradient of the loss with respect to the prediction.
        saved : Saved
            From `forward`.
        inputs : bool, default=True
            Whether the gradient of the input is wanted.

        Returns
        -------
        ndarray of shape (T, in_features) or None
            Gradient with respect to the values of the sets, in the order in which they were given. Where dy is.

        Raises
        ------
        ValueError
            If dy has another shape than the prediction, or another network made ``saved``.
        TypeError
            If dy does not hold real numbers, or ``saved`` is not what `forward` returned.
        """
        self._check_saved(saved)
        given = as_targets(dy, self.prediction_shape(saved.sets), self.dtype, name="dy")
        dy = check_kernels(given, "dy", self.kernels)
        dx = dy if self.pool is not None or saved.order is None else dy[saved.order]
        dx = self.head.backward(dx, saved.head)
        if self.pooling is not None:
            dx = self.pooling.backward(dx, saved.pooling, saved.sets)
        dE = self.kernels.xp.zeros_like(saved.E) if self.orders and inputs else None
        shared = {"E": saved.E, "dE": dE} if self.orders else {}
        for i in reversed(range(self.depth)):
            dx = self.layers[i].backward(dx, saved.layers[i], saved.sets, inputs=inputs or i > 0, **shared)
        if inputs and (self.symmetry is not None or self.scale is not None):
            dx = self._input_gradient(dx, dE, dy, saved)
        return beside(self._as_given(dx, saved.order), given)

    def zero_gradients(self):
        """Set all gradients to zero."""
        self.gradients.flat.fill(0)

    def to(self, backend, precision="float32", *, dtype=None):
        """Return a copy of this network on another backend, in another precision, or of another dtype.

        Parameters
        ----------
        backend : {"auto", "reference", "cpu", "cuda"}
            The backend of the copy. This network stays as it is.
        precision : {"float32", "tf32", "bfloat16"}, default="float32"
            The precision of the copy.
        dtype : {"float32", "float64"} or None, default=None
            The dtype of the copy; None for that of this network.

        Returns
        -------
        DeepSet
            The same parameters, to the bit, or rounded to float32; gradients zero.
        """
        config = DeepSet.config(self)
        if dtype is not None:
            config["dtype"] = check_dtype(dtype).name
        return _rebuild(type(self), config, backend, dict(self.parameters), precision, self._others())

    def save(self, path):
        """Write the network to ``path`` (safetensors; see `fastperm.load`)."""
        from fastperm.checkpoints import save_network

        save_network(self, path)

    def __reduce__(self):
        parameters = {name: on_host(array) for name, array in self.parameters.items()}
        return _rebuild, (type(self), DeepSet.config(self), self.backend, parameters, self.precision, self._others())

    def _others(self):
        """Return the attributes that somebody else gave it."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

    def _predict(self, given):
        try:
            sets, order, scales = self._prepared(given)
            y = self.kernels.xp.empty(self.prediction_shape(sets), self.dtype)
            self.kernels.deep_set_forward(*self._batch(sets), *self._whole(), y=y, **self._settings())
            y = self._symmetries.shifted(y, scales, self.kernels) if self.pool is not None else self._as_given(y, order)
            return beside(y, given.values)
        except MemoryError as error:
            again = self._made_room(given, error)
        # Not within `except`, where the error would keep what had been allocated.
        if again:
            return self._predict(given)
        parts = [self._predict(given[half]) for half in _halves(given)]
        return module_of(parts[0]).concatenate(parts)

    def _step(self, given, targets):
        """Make `gradients` those of a batch, and return its loss."""
        try:
            sets, order, scales = self._prepared(given)
            own = self._symmetries.shifted(targets, scales, self.kernels, sign=-1)
            own = own if self.pool is not None or order is None else own[order]
            self.zero_gradients()
            batch = (*self._batch(sets), own)
            gradients = self.gradients.flat
            return self.kernels.deep_set_step(*batch, *self._whole(), gradients=gradients, **self._settings())
        except MemoryError as error:
            again = self._made_room(given, error)
        if again:
            return self._step(given, targets)
        loss, total = 0.0, self.kernels.xp.zeros_like(self.gradients.flat)
        for half in _halves(given):
            rows = half if self.pool is not None else slice(*given.offsets[[half.start, half.stop]])
            part = targets[rows]
            loss += float(self._step(given[half], part)) * (part.size / targets.size)
            total += self.gradients.flat * self.dtype.type(part.size / targets.size)
        self.gradients.flat[:] = total
        return loss

    def _make_room(self):
        """Give up the memory of recorded steps, and return whether there was any."""
        found = any(queue is not None for queue in self._recorded.values())
        self._recorded.clear()
        return found

    def _made_room(self, sets, error):
        """Return whether a batch that did not fit in memory may now; raise if it may not, and cannot be split."""
        if self._make_room():
            return True
        if len(sets) > 1:
            _logger.info("%d sets do not fit in memory together (%s); each half is taken alone", len(sets), error)
            return False
        raise MemoryError(
            f"a set of {sets.n_elements} elements does not fit in memory with layers of widths {self.widths} in "
            f"{self.dtype} on the backend {self.backend!r}; predict_stream needs no memory that grows with it ({error})"
        ) from None

    def _check_saved(self, saved):
        """Refuse what another network saved: the kernels would read past the end of its arrays."""
        if not isinstance(saved, Saved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__name__}")
        own = DeepSet.config(self)
        del own["invariance"]  # of which only the order is left, and that is saved
        different = [f"{name}={saved.made_by[name]!r}" for name in own if saved.made_by[name] != own[name]]
        if different:
            raise ValueError(f"saved comes from another network, with {', '.join(different)}; this one is {self!r}")

    def _prepared(self, sets):
        """Return the sets as the kernels should see them, the order of their rows, and their scales or None."""
        sets, order = self._ordered(sets)
        sets, scales = self._symmetries.seen(sets, self.kernels)
        return sets, order, scales

    def _input_gradient(self, dx, dE, dy, saved):
        """Return the gradient of the values of the sets, (T, in_features), from that of what the first layer saw."""
        dangles = None
        if dE is not None:
            dangles = self.kernels.xp.empty(len(dx), self.dtype)
            self.kernels.angular_basis_backward(dE, saved.E, dangles=dangles)
        return self._symmetries.input_gradient(dx, dangles, dy, saved.sets, saved.scales, self.kernels)

    def _ordered(self, sets):
        """Return the sets as the kernels should see them, and the order of their rows (None for as they are).

        They are in the arrays of the backend, which for the cuda backend lie on the GPU.
        """
        check_device(self.parameters.flat, "the network")
        weights = None if sets.weights is None else check_kernels(sets.weights, "weights", self.kernels)
        values = check_kernels(sets.values, "values", self.kernels)
        sets = Sets._trusted(values, sets.offsets, weights)
        if self.invariance == "rounding":
            return sets, None
        xp = self.kernels.xp
        order, sorted_values = xp.empty(sets.n_elements, np.int64), xp.empty_like(values)
        sorted_weights = None if weights is None else xp.empty_like(weights)
        self.kernels.canonical_order(
            *self._batch(sets), order=order, sorted_x=sorted_values, sorted_weights=sorted_weights
        )
        return Sets._trusted(sorted_values, sets.offsets, sorted_weights), order

    def _as_given(self, rows, order):
        """Undo `_ordered` on an array of rows."""
        if order is None or rows is None:
            return rows
        given = self.kernels.xp.empty_like(rows)
        given[order] = rows
        return given

    def _batch(self, sets):
        return sets.values, sets.offsets, sets.weights

    def _whole(self):
        """Return the network as the kernels of whole networks take it."""
        widths = (self._symmetries.features, *self.widths, self.out_features)
        return self.parameters.flat, widths, self.aggregate, self.pool, self.orders

    def _settings(self):
        """Return what only some backends know."""
        return {} if self.precision == "float32" else {"precision": self.precision}

    def _part(self, prefix) -> tuple[Any, Any]:
        """Return the parameters and the gradients whose names begin with ``prefix``, without it."""
        parameters, gradients = (
            MappingProxyType({name.removeprefix(prefix): own for name, own in whole.items() if name.startswith(prefix)})
            for whole in (self.parameters, self.gradients)
        )
        return parameters, gradients

    def _initialise(self, generator):
        for name, array in self.parameters.items():
            if array.ndim >= 2:
                # Filters have gain 1, as two of them, cos and sin, make up one term. All orders of a filter together
                # then keep the variance whatever their number: harmonics share out that of the features (Parseval).
                gain = np.sqrt(2) if name.endswith((".self", ".pool")) else 1.0
                self.parameters[name] = initialise(array.shape, generator, gain=gain)


def _rebuild(kind, config, backend, parameters, precision, others):
    """Return a network of a class whose constructor may be another one than `DeepSet`'s."""
    net = kind.__new__(kind)
    DeepSet.__init__(net, **config, backend=backend, precision=precision, seed=0)
    net.parameters.update(parameters)
    vars(net).update(others)
    return net


def _halves(sets):
    middle = len(sets) // 2
    return slice(0, middle), slice(middle, len(sets))


def _check_widths(width, depth):
    if np.ndim(width) == 0:
        return (check_integer(width, "width", minimum=1),) * depth
    widths = tuple(check_integer(w, f"width[{i}]", minimum=1) for i, w in enumerate(width))
    if len(widths) != depth:
        raise ValueError(f"width must be an integer or have one entry for each of the {depth} layers, got {width!r}")
    return widths
