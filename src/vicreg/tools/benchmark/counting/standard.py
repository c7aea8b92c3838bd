"""NumPy-like libraries: the operations that CuPy would be asked for, without CuPy or a GPU.

The arrays here pass for CuPy's, so that the package takes the paths that it takes there. Their
functions are NumPy's, of which those that would take long only find out the shape and the dtype of
the result: nothing is chosen by the values of arrays on a GPU, so these have none that matter.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from vicreg.tools.benchmark.counting.counts import Counts, stored

__all__ = ["CountedArray", "Namespace", "count"]

_standard: Any = array_api_compat.numpy  # which has no types


def count(function: Callable[..., Any], views: Sequence[Any]) -> Counts:
    """Return what one call of `function` asks of a library such as CuPy.

    Parameters
    ----------
    function : callable
        Of as many arrays as there are views.
    views : sequence of numpy.ndarray
        The shapes and dtypes of the views; their values are not used.

    Returns
    -------
    Counts
    """
    namespace = Namespace()
    with np.errstate(all="ignore"):
        function(*map(namespace.array_of, views))
    return namespace.counts


class Namespace:
    """NumPy's functions, each counted when it is called."""

    __name__ = __name__

    def __init__(self) -> None:
        self.counts = Counts()

    def array_of(self, values: Any) -> CountedArray:
        """Return an array of the shape, strides and dtype of `values`, counted here."""
        return CountedArray(np.asarray(values), self)

    def __getattr__(self, name: str) -> Any:
        known = getattr(_standard, name)
        is_function = callable(known) and not isinstance(known, type)
        return functools.partial(self.call, known) if is_function else known

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        out: CountedArray | None = None,
        **named: Any,
    ) -> Any:
        """Return what `function` does, as arrays that are counted here, and count it."""
        name, given = function.__name__, _arrays_in([args, *named.values()])
        if out is not None:
            self._add(name, given, [out])
            return out
        plain = {key: _plain(argument) for key, argument in named.items()}
        returned = _result(function, [_plain(argument) for argument in args], plain)
        results = returned if isinstance(returned, tuple | list) else [returned]
        if not all(isinstance(result, np.ndarray | np.generic) for result in results):
            return returned  # a dtype or the like
        is_view = all(_is_view(function, result, given) for result in results)
        if not (is_view or name in _ALLOCATE):
            self._add(name, given, results)
        counted = [self.array_of(result) for result in results]
        return counted if isinstance(returned, tuple | list) else counted[0]

    def _add(self, name: str, given: Sequence[CountedArray], results: Sequence[Any]) -> None:
        self.counts.add(_bytes_moved(name, given, results), _multiply_adds(name, given))

    def update(self, array: CountedArray, key: Any, *others: Any) -> None:
        """Count that elements of `array`, which `key` selects, are written in place.

        The arrays in `key` and among `others` are read.
        """
        read = _arrays_in([key, others])
        self.counts.add(sum(map(_stored, [array.values[_plain(key)], *read])))

    def put_along_axis(self, array: CountedArray, indices: Any, values: Any, axis: int) -> None:
        """Count that elements of `array` are written at `indices` along `axis`, in place."""
        others = list(array.shape)
        others[axis] = 1
        places = np.broadcast_shapes(tuple(others), indices.shape)
        read = _arrays_in([indices, values])
        self.counts.add(array.dtype.itemsize * math.prod(places) + sum(map(_stored, read)))


class CountedArray(NDArrayOperatorsMixin):
    """An array that stands for one of CuPy, whose values are without meaning.

    Parameters
    ----------
    values : numpy.ndarray
        An array of its shape, strides and dtype.
    namespace : Namespace
        Where its operations are counted.
    """

    __module__ = "cupy"  # by which the package knows the library of an array

    device = "cpu"  # the only one that NumPy's functions know

    def __init__(self, values: Any, namespace: Namespace) -> None:
        self.values, self._namespace = values, namespace
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype

    def __array_namespace__(self, *, api_version: str | None = None) -> Namespace:
        return self._namespace

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        # Of an operator in place, `out` is a tuple of the array itself.
        (out,) = settings.pop("out", (None,))
        return self._namespace.call(ufunc, *inputs, out=out, **settings)

    def __bool__(self) -> bool:
        raise TypeError("an array that is counted has no values to choose by")

    __float__ = __int__ = __index__ = __bool__

    def __getitem__(self, key: Any) -> CountedArray:
        return self._call(operator.getitem, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._namespace.update(self, key, value)

    @property
    def T(self) -> CountedArray:  # noqa: N802 - the standard's name
        """The array with its axes reversed."""
        return self._call(np.transpose)

    @property
    def mT(self) -> CountedArray:  # noqa: N802 - the standard's name
        """The array with each matrix transposed."""
        return self._call(_standard.matrix_transpose)

    def reshape(self, *shape: int) -> CountedArray:
        """Return the array in another shape."""
        return self._call(np.reshape, shape)

    def mean(self, **settings: Any) -> CountedArray:
        """Return the mean, as NumPy's method does."""
        return self._call(np.mean, **settings)

    def sum(self, **settings: Any) -> CountedArray:
        """Return the sum, as NumPy's method does."""
        return self._call(np.sum, **settings)

    def var(self, **settings: Any) -> CountedArray:
        """Return the variance, as NumPy's method does."""
        return self._call(np.var, **settings)

    def _call(self, function: Callable[..., Any], *args: Any, **settings: Any) -> CountedArray:
        returned: CountedArray = self._namespace.call(function, self, *args, **settings)
        return returned


#: Memory that nothing is written to.
_ALLOCATE = {"empty", "empty_like"}
#: What reads some elements of its first argument: as many as it returns.
_PICK = {"getitem", "take", "take_along_axis"}


def _bytes_moved(name: str, given: Sequence[CountedArray], results: Sequence[Any]) -> int:
    written = sum(map(_stored, results))
    if name in _PICK:
        return 2 * written + sum(map(_stored, given[1:]))
    if name.endswith("_like"):  # reads no more than a shape
        return written
    return written + sum(map(_stored, given))


def _multiply_adds(name: str, given: Sequence[CountedArray]) -> int:
    if name != "matmul":
        return 0
    left, right = given
    shape = _matrix_product(left.shape, right.shape)
    return math.prod(shape) * int(left.shape[-1])


def _result(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what `function` does; of what would take long, zeros of the shape and dtype."""
    if function is np.matmul or function is _standard.matmul:
        shape = _matrix_product(*(argument.shape for argument in args))
        return np.zeros(shape, np.result_type(*args))
    if function is np.where or (isinstance(function, np.ufunc) and function.signature is None):
        one_each = [
            np.zeros((), arg.dtype) if isinstance(arg, np.ndarray) else arg for arg in args
        ]
        shape = np.broadcast_shapes(*map(np.shape, args))
        return np.zeros(shape, function(*one_each, **kwargs).dtype)
    return function(*args, **kwargs)


def _matrix_product(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    if left[-1] != right[-2]:
        raise ValueError(f"no product of matrices of the shapes {left} and {right}")
    return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])


def _is_view(function: Any, result: Any, given: Sequence[CountedArray]) -> bool:
    """Whether `result` is what is given, read in another way."""
    if function is operator.getitem and (isinstance(result, np.generic) or not result.size):
        return True
    return any(np.may_share_memory(result, array.values) for array in given)


def _plain(argument: Any) -> Any:
    """Return `argument` with NumPy's arrays for those that are counted."""
    if isinstance(argument, CountedArray):
        return argument.values
    if isinstance(argument, tuple | list):
        return type(argument)(map(_plain, argument))
    return argument


def _arrays_in(arguments: Sequence[Any]) -> list[CountedArray]:
    found: list[CountedArray] = []
    for argument in arguments:
        if isinstance(argument, CountedArray):
            found.append(argument)
        elif isinstance(argument, tuple | list):
            found += _arrays_in(argument)
    return found


def _stored(array: Any) -> int:
    values = array.values if isinstance(array, CountedArray) else np.asarray(array)
    return stored(values.shape, values.strides, values.itemsize)
