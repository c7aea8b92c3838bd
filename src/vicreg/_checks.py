"""The checks of every public argument, before any computing.

Each error names the argument, what came and what is wanted.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, ParamSpec

from vicreg._adapters.dispatch import (
    adapter_for,
    device_of,
    library_of,
    partition_of,
    unsupported_kind,
)
from vicreg._conventions import (
    Codebase,
    Convention,
    checked_number,
    codebases,
    convention_named,
    samples_needed,
)
from vicreg._core.communicator import Communicator
from vicreg._core.layout import HALF_PRECISION, Axes, dtype_name
from vicreg._core.objective import ALL, Flags, Objective
from vicreg._core.sizes import DEFAULT_SIZES, Sizes
from vicreg._core.terms import Pairs
from vicreg._typing import Penalty

Array = Any

_REAL_DTYPES = (*HALF_PRECISION, "float32", "float64", "float96", "float128", "longdouble")
_COUNTS = ("bool", "int", "uint")  # how the names of other dtypes that weights may have begin
_TERMS = ("invariance", "variance", "covariance")

P = ParamSpec("P")
Weight = Any  # a number, or an array of shape () of the views' library
CheckedWeights = tuple[Weight, Weight, Weight]


def checked_objective(
    convention: str | Convention,
    weights: Sequence[Weight | None],
    gamma: float,
    eps: float | None,
    method: str,
    axes: tuple[Any, Any],
    comm: Communicator | None = None,
    *,
    each_term: bool = False,
    pooled: bool = False,
    penalty: str = "square",
    delta: float = 1.0,
    published_gradient: bool = False,
    sizes: Sizes = DEFAULT_SIZES,
    weighted: bool = False,
    pairs: Any = None,
) -> tuple[Objective, CheckedWeights]:
    """Return the objective that these arguments describe, and the weights of its terms.

    A weight or `eps` of None is the convention's own. `axes` are `feature_axis` and `sample_axis`;
    a `sample_axis` of None is every axis without features if `pooled`, and otherwise the first.
    `weighted` says whether there is a `sample_weight`.
    """
    convention = convention_named(convention)
    if not isinstance(method, str) or method not in ("auto", "gram", "covariance"):
        raise ValueError(f"method must be 'auto', 'gram' or 'covariance'; got {method!r}")
    checked = _checked_weights(weights, convention)
    objective = Objective(
        convention=convention,
        in_loss=_in_loss(checked),
        gamma=checked_number(gamma, "gamma", above_zero=True),
        eps=_checked_eps(eps, convention),
        method=method,  # type: ignore[arg-type]  # one of the three, by the check above
        axes=_checked_axes(*axes, pooled),
        each_term=each_term,
        penalty=_checked_penalty(penalty, method),
        delta=_checked_delta(delta, penalty),
        published_gradient=published_gradient,
        sizes=sizes,
        comm=_checked_communicator(comm),
        weighted=weighted,
        pairs=_checked_pairs(pairs, convention),
    )
    return objective, checked


def _checked_communicator(comm: Any) -> Communicator | None:
    if comm is None or isinstance(comm, Communicator):
        return comm
    hint = ""
    if isinstance(comm, type) and issubclass(comm, Communicator):
        hint = f": call it, {comm.__name__}()"
    raise TypeError(
        "comm must be None or a Communicator of vicreg.distributed, as TorchCommunicator(); got "
        f"{comm!r}{hint}"
    )


def _in_loss(weights: CheckedWeights) -> Flags:
    """Return which terms have a part in the loss: those of weight 0 have none, unless all are."""
    nonzero = [not isinstance(weight, float) or weight != 0 for weight in weights]
    return (nonzero[0], nonzero[1], nonzero[2]) if any(nonzero) else ALL


def _checked_penalty(penalty: Any, method: str) -> Penalty:
    if not isinstance(penalty, str) or penalty not in ("square", "smooth_l1"):
        raise ValueError(f"penalty must be 'square' or 'smooth_l1'; got {penalty!r}")
    if penalty == "smooth_l1" and method == "gram":
        raise ValueError(
            "method must be 'auto' or 'covariance' where penalty is 'smooth_l1', which needs each "
            "entry of the covariance; got 'gram'"
        )
    return penalty  # type: ignore[return-value]  # one of the two, by the check above


def _checked_delta(delta: Any, penalty: str) -> float:
    number = checked_number(delta, "delta", above_zero=True)
    if penalty == "square" and number != 1:
        raise ValueError(
            "delta must be left at 1.0 where penalty is 'square', which has no linear part; "
            f"got {delta!r}"
        )
    return number


def _checked_weights(weights: Sequence[Weight | None], convention: Convention) -> CheckedWeights:
    published: Sequence[float | None] | None = convention.weights
    if published is None:
        # No invariance term, no weight to give; what was not published must be.
        published = (0.0 if convention.invariance == "none" else None, None, None)
    chosen: list[Weight] = []
    for term, given, default in zip(_TERMS, weights, published, strict=True):
        argument = f"{term}_weight"
        if given is not None:
            chosen.append(_checked_weight(given, argument))
        elif default is not None:
            chosen.append(default)
        else:
            raise ValueError(
                f"{argument} must be given: convention {convention.name!r} publishes no weights"
            )
    if convention.invariance == "none" and (not isinstance(chosen[0], float) or chosen[0]):
        raise ValueError(
            f"invariance_weight must be None or 0: convention {convention.name!r} has no "
            f"invariance term; got {chosen[0]!r}"
        )
    return (chosen[0], chosen[1], chosen[2])


def _checked_eps(eps: float | None, convention: Convention) -> float:
    if eps is None:
        # Read here, since PyTorch's compiler makes it an input: see `_adapters.torch.layer`.
        return float(convention.eps)
    number = checked_number(eps, "eps")
    if number and convention.hinge_on == "variance":
        raise ValueError(
            f"eps must be None or 0: convention {convention.name!r} has its hinge on the variance "
            f"and takes no root; got {eps!r}"
        )
    return number


def _checked_weight(value: Any, argument: str) -> Weight:
    # NumPy's own scalars are numbers; those that a compiler traces have no attributes to ask for.
    library = None if isinstance(value, (Real, str)) else library_of(value)
    if library is None:
        return checked_number(value, argument, "a number or an array of shape ()")
    if unsupported_kind(value, library) is not None or tuple(value.shape) != ():
        raise TypeError(
            f"{argument} must be a number or an array of shape (); got an array of shape "
            f"{tuple(value.shape)}"
        )
    if dtype_name(value) not in _REAL_DTYPES:
        raise TypeError(f"{argument} must have a real floating-point dtype; got {value.dtype}")
    return value


def _checked_pairs(given: Any, convention: Convention) -> Pairs | None:
    """Return the pairs of views in one order, in which each has the smaller index first."""
    if given is None:
        return None
    if convention.invariance == "none":
        raise ValueError(
            f"pairs must be None: convention {convention.name!r} has no invariance term; got "
            f"{given!r}"
        )
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"pairs must be a list or a tuple of pairs of indices; got {given!r}")
    if not given:
        raise ValueError("pairs must be one pair of views or more, or None for all; got none")
    pairs = [_checked_pair(pair) for pair in given]
    twice = next((pair for place, pair in enumerate(pairs) if pair in pairs[:place]), None)
    if twice is not None:
        raise ValueError(
            f"pairs must name each pair of views once, in either order; got {twice} twice"
        )
    return tuple(sorted(pairs))


def _checked_pair(given: Any) -> tuple[int, int]:
    wanted = "pairs must be of two indices each, as (0, 1)"
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise TypeError(f"{wanted}; got {given!r}")
    try:
        first, second = (operator.index(view) for view in given if not isinstance(view, bool))
    except (TypeError, ValueError):
        raise TypeError(f"{wanted}; got {given!r}") from None
    if first == second:
        raise ValueError(f"pairs must be of two different views; got {given!r}")
    return min(first, second), max(first, second)


def check_pairs_of(views: int, pairs: Pairs | None) -> None:
    """Raise which of `pairs` is of a view that there is not, among so many `views`."""
    for pair in pairs or ():
        if pair[0] < 0 or pair[1] >= views:
            raise ValueError(
                f"pairs must be of indices from 0 to {views - 1}, since there are {views} views; "
                f"got {pair}"
            )


def _checked_axes(feature_axis: Any, sample_axis: Any, pooled: bool) -> Axes:
    samples = None if sample_axis is None else _checked_places(sample_axis, "sample_axis")
    return Axes(_checked_places(feature_axis, "feature_axis"), samples, pooled)


def _checked_places(given: Any, argument: str) -> tuple[int, ...]:
    axes = given if isinstance(given, Sequence) else (given,)
    try:
        places = tuple([operator.index(axis) for axis in axes if not isinstance(axis, bool)])
    except TypeError:
        places = ()
    if len(places) < len(axes) or isinstance(given, str):
        raise TypeError(f"{argument} must be an integer or a sequence of integers; got {given!r}")
    if not places:
        raise ValueError(f"{argument} must be one axis or more; got {given!r}")
    return places


def checked_library(
    views: Sequence[Array],
    names: Sequence[str],
    objective: Objective,
    weights: Sequence[Weight] = (),
) -> str:
    """Return the library of `views`, called `names` in messages, or raise what is wrong."""
    first, library = views[0], _checked_array(views[0], names[0], objective)
    # All arrays before any comparison: what is wrong with one alone is said first.
    libraries = [
        library if _is_like(view, first, library) else _checked_array(view, name, objective)
        for view, name in zip(views[1:], names[1:], strict=True)
    ]
    for view, name, its_library in zip(views[1:], names[1:], libraries, strict=True):
        if its_library != library:
            _raise_differs(TypeError, "library", names[0], library, name, its_library)
        if tuple(view.shape) != tuple(first.shape):
            _raise_differs(
                ValueError, "shape", names[0], tuple(first.shape), name, tuple(view.shape)
            )
        if view.dtype != first.dtype:
            _raise_differs(TypeError, "dtype", names[0], first.dtype, name, view.dtype)
        here, there = device_of(first, library), device_of(view, library)
        if here is not None and there is not None and here != there:
            _raise_differs(ValueError, "device", names[0], here, name, there)
    for weight, term in zip(weights, _TERMS, strict=False):
        if not isinstance(weight, float) and library_of(weight) != library:
            raise TypeError(
                f"{term}_weight must be a number or an array of the library of {names[0]}, "
                f"{library}; got an array of {library_of(weight)}"
            )
    return library


def with_sample_weight(
    views: tuple[Array, ...], name: str, sample_weight: Array | None, objective: Objective
) -> tuple[tuple[Array, ...], Objective]:
    """Return what adapters take: `views` with the weights of their samples, and the objective.

    The views are checked already; the first of them is called `name` in messages.
    """
    if sample_weight is None:
        return views, objective
    library = str(library_of(views[0]))
    checked_sample_weight(sample_weight, views[0], name, objective.axes, library)
    return (*views, sample_weight), with_weights(objective, sample_weight)


def with_weights(objective: Objective, sample_weight: Array) -> Objective:
    """Return `objective` for views whose samples have such weights, which are checked."""
    # Ranks may have weights of different dtypes, and shall all do the same.
    is_mask = objective.comm is None and dtype_name(sample_weight).startswith("bool")
    return replace(objective, weighted=True, is_mask=is_mask)


def _is_like(view: Array, first: Array, library: str) -> bool:
    """Whether the checks of `first` are those of `view` too: they cost more than to see that."""
    # PyTorch has one type for tensors of every layout.
    return library != "torch" and (
        type(view) is type(first) and view.shape == first.shape and view.dtype == first.dtype
    )


def _raise_differs(
    error: type[Exception], what: str, first: str, here: object, other: str, there: object
) -> None:
    raise error(
        f"{other} must have the {what} of {first}; got {there} for {other} and {here} for {first}"
    )


def _checked_array(view: Array, name: str, objective: Objective) -> str:
    library = library_of(view)
    if library is None:
        raise TypeError(
            f"{name} must be an array of a library that follows the array API standard; "
            f"got {type(view).__name__}{_hint(view)}"
        )
    kind = unsupported_kind(view, library)
    if kind is not None:
        raise TypeError(f"{name} must be a dense array; got {kind}")
    partition = partition_of(view, library)
    if partition is not None:
        raise ValueError(
            f"{name} must be whole in each process; got {partition}: pass {name}.full_tensor()"
        )
    if dtype_name(view) not in _REAL_DTYPES:
        raise TypeError(f"{name} must have a real floating-point dtype; got {view.dtype}")
    _check_shape(tuple(view.shape), name, objective)
    sent = None if objective.comm is None else objective.comm.libraries
    if sent is not None and library not in sent:
        raise TypeError(
            f"comm must send arrays of {library}, the library of {name}; got {objective.comm!r}, "
            f"which sends those of {' and '.join(sent)}"
        )
    return library


def checked_sample_weight(
    weight: Array, like: Array, name_of_like: str, axes: Axes, library: str
) -> None:
    """Raise what is wrong with `weight` as the `sample_weight` of `like`, which has been checked.

    Its shape broadcasts to that of `like` without the axes of the features. No value is waited
    for: they are checked where they are there already, and nothing is being traced.
    """
    argument = "sample_weight"
    its_library = library_of(weight)
    if its_library != library:
        got = type(weight).__name__ if its_library is None else f"an array of {its_library}"
        raise TypeError(
            f"{argument} must be an array of the library of {name_of_like}, {library}; got {got}"
        )
    kind = unsupported_kind(weight, library)
    if kind is not None:
        raise TypeError(f"{argument} must be a dense array; got {kind}")
    partition = partition_of(weight, library)
    if partition is not None:
        raise ValueError(f"{argument} must be whole in each process; got {partition}")
    name = dtype_name(weight)
    if not name.startswith(_COUNTS) and name not in _REAL_DTYPES:
        raise TypeError(
            f"{argument} must have a dtype of booleans, integers or real floating-point numbers; "
            f"got {weight.dtype}"
        )
    _check_shape_of_weight(tuple(weight.shape), like, name_of_like, axes)
    here, there = device_of(like, library), device_of(weight, library)
    if here is not None and there is not None and here != there:
        _raise_differs(ValueError, "device", name_of_like, here, argument, there)
    if library == "torch" and adapter_for(library).is_differentiated(weight):
        raise ValueError(
            f"{argument} must not require a gradient, as nothing is differentiated by it: pass "
            f"{argument}.detach()"
        )
    check_values_of_weight(weight, like, library)


def check_values_of_weight(weight: Array, like: Array, library: str) -> None:
    """Raise what is wrong with the values of `weight`, the `sample_weight` of `like`."""
    wrong = adapter_for(library).wrong_count(weight, like)
    if wrong is not None:
        raise ValueError(
            f"sample_weight must be 0 or more everywhere, and finite in the dtype of the "
            f"computation; got {wrong}"
        )


def _check_shape_of_weight(shape: tuple[Any, ...], like: Array, name: str, axes: Axes) -> None:
    features = axes.split(like.ndim)[2]
    wanted = tuple(like.shape[axis] for axis in range(like.ndim) if axis not in features)
    ends = wanted[len(wanted) - len(shape) :]
    # A list: PyTorch 2.7 compiles no generator here. Not `here in (1, there)`, which the compiler
    # may take for false where `there` is a size that stands for any.
    pairs = zip(shape, ends, strict=False)
    fits = [here == 1 or here == there for here, there in pairs]
    if len(shape) > len(wanted) or not all(fits):
        raise ValueError(
            f"sample_weight must have a shape that broadcasts to {wanted}, the shape of {name} "
            f"without its features; got {shape}"
        )


def _hint(value: Any) -> str:
    """Return what a number or a list should have been, for an error; nothing for all else."""
    if isinstance(value, Real):
        return ": weights are given by name, as invariance_weight=25"
    if not isinstance(value, (list, tuple)):
        return ""
    library = library_of(value[0]) if value else None
    if library is None:
        return ": convert it with numpy.asarray"
    if value[0].ndim > 1:
        return ": pass the views one by one"
    namespace = {"jax": "jax.numpy", "mlx": "mlx.core", "dask": "dask.array"}.get(library, library)
    return f": make one array of it with {namespace}.stack"


def _check_axes(ndim: int, name: str, axes: Axes) -> None:
    taken: list[int] = []
    for argument, places in (("feature_axis", axes.features), ("sample_axis", axes.samples)):
        for axis in places or ():
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"{argument} must be an axis of {name}, from {-ndim} to {ndim - 1}; got {axis}"
                )
            if axis % ndim in taken:
                raise ValueError(
                    f"feature_axis and sample_axis must name no axis of {name} twice; got "
                    f"{axes.features} and {axes.samples} of {ndim} axes"
                )
            taken.append(axis % ndim)
    if len(taken) == ndim and axes.samples is None:
        raise ValueError(
            f"feature_axis must leave an axis of {name} for the samples; got {axes.features} of "
            f"{ndim} axes"
        )


def _check_shape(shape: tuple[Any, ...], name: str, objective: Objective) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{name} must have at least two axes, samples and features; got shape {shape}"
        )
    _check_axes(len(shape), name, objective.axes)
    if any(length is None or length != length for length in shape):
        raise ValueError(f"{name} must have a shape that is known; got {shape}")
    convention, axes = objective.convention, objective.axes
    *positions, n, d = axes.core_shape(shape)
    # Of several ranks one may have no rows.
    if 0 in (*positions, d) or (n == 0 and objective.comm is None):
        raise ValueError(f"{name} must not be empty; got shape {shape}")
    needed = samples_needed(convention)
    if n < needed and objective.comm is None:
        counted = _along(axes.split(len(shape))[1])
        raise ValueError(
            f"{name} must have at least {needed} samples{counted}; got {n} in shape {shape}"
        )
    if d < 2 and convention.covariance_divisor == "d(d-1)":
        raise ValueError(
            f"{name} must have at least 2 features: convention {convention.name!r} divides by "
            f"d(d - 1); got {d} in shape {shape}"
        )


def _along(axes: tuple[int, ...]) -> str:
    """Return where samples are counted, if that is along several axes."""
    return f" along the axes {axes}" if len(axes) > 1 else ""


def explains_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor say what the arguments of another codebase are called here.

    It takes its arguments by name alone.
    """
    owner = init.__qualname__.partition(".")[0]
    _, *own = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        _, *by_position = args
        if by_position:
            raise TypeError(_named(owner, by_position))
        unknown = [name for name in kwargs if name not in own]
        if unknown:
            raise TypeError(f"{owner} has no {_explained(unknown, own, 'convention' in kwargs)}")
        init(*args, **kwargs)

    return checked


def _named(owner: str, given: Sequence[Any]) -> str:
    """Return the error for arguments by position, or in one sequence, with their names."""
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    if any(getattr(value, "ndim", 0) for value in given):
        return f"{owner} takes no views, but makes what takes them: {owner}()(z1, z2)"
    is_convention = isinstance(next(iter(given), None), (str, Convention))
    names = ("convention",) if is_convention else [f"{term}_weight" for term in _TERMS]
    named = ", ".join(f"{name}={value!r}" for name, value in zip(names, given, strict=False))
    return f"{owner} takes arguments by name alone: {named}"


def _explained(unknown: Sequence[str], own: Sequence[str], has_convention: bool) -> str:
    """Return the unknown names, with whose they are and what they are called here."""
    theirs = [one for one in codebases.values() if set(unknown) <= one.arguments.keys()]
    if theirs:
        whose = ", ".join(f"{one.name}'s" for one in theirs)
        are = "name: it is" if len(unknown) == 1 else "names: they are"
        called = ", ".join(theirs[0].arguments[name] for name in unknown)
        needed = "" if has_convention else _convention_of(theirs)
        return f"{', '.join(map(repr, unknown))}, {whose} {are} {called}{needed}"
    if len(unknown) > 1:  # of several codebases, or of none
        return _explained(unknown[:1], own, has_convention)
    near = difflib.get_close_matches(unknown[0], own, 1)
    hint = f"did you mean {near[0]}=?" if near else f"it has {', '.join(own)}"
    return f"{unknown[0]!r}: {hint}"


def _convention_of(theirs: Sequence[Codebase]) -> str:
    """Return the conventions that go with the names of codebases, but for the default."""
    others = " or ".join(repr(one.name) for one in theirs if one.convention != "official")
    whose = " for theirs" * any(one.convention == "official" for one in theirs)
    return f", with convention={others}{whose}" * bool(others)
