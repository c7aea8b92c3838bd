"""Bad input: a TypeError or ValueError that names the argument, what came and what is wanted."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from backends import Backend

from vicreg import (
    conventions,
    covariance_loss,
    diagnose,
    invariance_loss,
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg._adapters.dispatch import library_of
from vicreg._checks import checked_sample_weight
from vicreg._core.layout import Axes

FUNCTIONS = (vicreg_loss, vicreg_terms, vicreg_value_and_grad)
VIEW = np.random.default_rng(0).standard_normal((4, 6))


def refused(error: type[Exception], *parts: str, views: tuple = (VIEW, VIEW), **settings) -> None:
    """Assert that all three functions refuse `views`, with every one of `parts` in the message."""
    for function in FUNCTIONS:
        with pytest.raises(error) as caught:
            function(*views, **settings)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.representative
@pytest.mark.parametrize("shape", [(4,), ()])
def test_fewer_than_two_axes(xp: Backend, shape: tuple[int, ...]) -> None:
    view = xp.asarray(np.ones(shape))
    refused(ValueError, "views[0]", "at least two axes", str(shape), views=(view, view))


@pytest.mark.representative
@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 5), ("at least 2 samples", "got 1")),
        ((0, 5), ("must not be empty", "(0, 5)")),
        ((5, 0), ("must not be empty", "(5, 0)")),
        ((4, 0, 5), ("must not be empty", "(4, 0, 5)")),
    ],
)
def test_too_few_samples(xp: Backend, shape: tuple[int, ...], parts: tuple[str, ...]) -> None:
    if xp.name == "dask" and 0 in shape:
        pytest.skip("Dask makes no chunks of nothing")
    view = xp.asarray(np.ones(shape))
    refused(ValueError, "views[0]", *parts, views=(view, view))


@pytest.mark.representative
def test_views_that_differ_in_shape(xp: Backend) -> None:
    views = (xp.asarray(np.ones((4, 6))), xp.asarray(np.ones((4, 5))))
    refused(ValueError, "views[1]", "shape of views[0]", "(4, 5)", "(4, 6)", views=views)


@pytest.mark.representative
def test_views_that_differ_in_dtype(xp: Backend) -> None:
    if len(xp.dtypes) < 2:
        pytest.skip("the library has one dtype")
    views = (xp.asarray(VIEW, "float64"), xp.asarray(VIEW, "float32"))
    refused(TypeError, "views[1]", "dtype of views[0]", "float64", "float32", views=views)


@pytest.mark.representative
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_dtypes_that_are_not_real_floating(xp: Backend, dtype: str) -> None:
    kind = {"bool": "bool_" if xp.name == "mlx" else "bool"}.get(dtype, dtype)
    if not hasattr(xp.xp, kind):
        pytest.skip(f"the library has no {dtype}")
    if xp.name == "dask":
        view = xp.xp.from_array(np.ones((4, 6), dtype))
    else:
        astype = getattr(xp.xp, "astype", None) or (lambda a, k: a.astype(k))
        base = xp.asarray(np.ones((4, 6)), xp.dtypes[0])
        view = (
            base.type(getattr(xp.xp, kind))
            if xp.name == "torch"
            else astype(base, getattr(xp.xp, kind))
        )
    refused(TypeError, "views[0]", "real floating-point dtype", dtype, views=(view, view))


@pytest.mark.parametrize(
    "view",
    [[[1.0, 2.0], [3.0, 4.0]], 3.0, None, "z", object()],
    ids=lambda view: type(view).__name__,  # the same in every process, unlike an address
)
def test_what_is_not_an_array(view: object) -> None:
    refused(TypeError, "views[0] must be an array", type(view).__name__, views=(view, view))
    refused(TypeError, "views[1] must be an array", views=(VIEW, view))


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (np.ma.masked_array(VIEW, VIEW > 1), "a masked array"),
        (VIEW.view(np.matrix), "a matrix"),
    ],
    ids=["masked", "matrix"],
)
def test_arrays_with_other_semantics(view: np.ndarray, kind: str) -> None:
    refused(TypeError, "views[0] must be a dense array", kind, views=(view, view))
    refused(TypeError, "views[1] must be a dense array", kind, views=(VIEW, view))


def test_a_sparse_tensor_after_a_dense_one() -> None:
    """They have one type, shape and dtype."""
    torch = pytest.importorskip("torch")
    dense = torch.ones(4, 6)
    refused(TypeError, "views[1] must be a dense array", views=(dense, dense.to_sparse()))


@pytest.mark.parametrize("view", [np.ndarray, np.dtype("f8"), np.float64], ids=repr)
def test_a_type_is_not_an_array(view: object) -> None:
    refused(TypeError, "views[0] must be an array", views=(view, view))


def test_a_list_of_views_is_told_to_be_passed_one_by_one() -> None:
    refused(TypeError, "pass the views one by one", views=([VIEW, VIEW], VIEW))
    refused(ValueError, "got 1: pass the views one by one", views=([VIEW, VIEW],))
    refused(TypeError, "pass the views one by one", views=([VIEW], VIEW))


def test_weights_by_position_are_told_to_be_named() -> None:
    hint = "views[2] must be an array", "got int: weights are given by name, as invariance_weight="
    refused(TypeError, *hint, views=(VIEW, VIEW, 25, 25, 1))


def test_a_list_of_numbers_is_told_to_be_an_array_of_numpy() -> None:
    refused(TypeError, "got list: convert it with numpy.asarray", views=(VIEW.tolist(), VIEW))
    refused(TypeError, "got tuple: convert it with numpy.asarray", views=(VIEW, ()))


@pytest.mark.representative
def test_a_list_of_samples_is_told_to_be_stacked(xp: Backend) -> None:
    samples = [xp.asarray(row) for row in VIEW]
    with pytest.raises(TypeError, match="got list: make one array of it with") as said:
        vicreg_loss(samples, samples)
    module, _, function = str(said.value).split()[-1].rpartition(".")
    stacked = getattr(importlib.import_module(module), function)(samples)
    assert tuple(stacked.shape) == VIEW.shape


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_views(count: int) -> None:
    refused(ValueError, "views must be two or more", f"got {count}", views=(VIEW,) * count)


@pytest.mark.representative
def test_views_of_different_libraries(xp: Backend) -> None:
    if xp.name == "numpy":
        pytest.skip("the other library is NumPy")
    views = (xp.asarray(VIEW), VIEW)
    refused(TypeError, "views[1]", "library of views[0]", "numpy", views=views)


def test_views_on_different_devices() -> None:
    xp = pytest.importorskip("array_api_strict")
    views = (xp.ones((4, 6)), xp.ones((4, 6), device=xp.Device("device1")))
    refused(ValueError, "views[1]", "device of views[0]", "device1", "CPU_DEVICE", views=views)


def test_an_unknown_convention_lists_the_known_ones() -> None:
    refused(ValueError, "convention", "'vikreg'", *conventions, convention="vikreg")
    refused(TypeError, "convention", "int", convention=3)


@pytest.mark.parametrize(
    "argument", ["invariance_weight", "variance_weight", "covariance_weight", "eps", "gamma"]
)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 10**400])
def test_numbers_out_of_range(argument: str, value: float) -> None:
    refused(ValueError, argument, repr(value), **{argument: value})


@pytest.mark.parametrize("value", ["1", [1.0], True, 1j], ids=repr)
@pytest.mark.parametrize("argument", ["invariance_weight", "eps", "gamma"])
def test_what_is_not_a_number(argument: str, value: object) -> None:
    refused(TypeError, f"{argument} must be a number", type(value).__name__, **{argument: value})


@pytest.mark.parametrize("argument", ["eps", "gamma"])
def test_what_no_array_may_be(argument: str) -> None:
    refused(TypeError, f"{argument} must be a number", "ndarray", **{argument: np.ones(())})


@pytest.mark.parametrize("argument", ["invariance_weight", "variance_weight"])
def test_a_weight_that_is_an_array_counts_as_its_value(argument: str) -> None:
    views = np.random.default_rng(0).standard_normal((2, 6, 4))
    by_array = vicreg_loss(*views, **{argument: np.asarray(3.0)})
    assert by_array == vicreg_loss(*views, **{argument: 3.0})


def test_a_weight_that_is_an_array() -> None:
    """It has the shape (), a real dtype, and the library of the views."""
    refused(TypeError, "variance_weight", "shape ()", "(1,)", variance_weight=np.ones(1))
    refused(TypeError, "variance_weight", "real floating", "int", variance_weight=np.asarray(1))
    torch = pytest.importorskip("torch")
    weight = torch.tensor(1.0)
    refused(TypeError, "variance_weight", "views[0]", "numpy", "torch", variance_weight=weight)
    refused(
        ValueError,
        "invariance_weight",
        "'vcreg'",
        convention="vcreg",
        variance_weight=1.0,
        covariance_weight=1.0,
        invariance_weight=np.asarray(1.0),
    )


def test_eps_has_no_place_where_the_hinge_is_on_the_variance() -> None:
    refused(ValueError, "eps must be None or 0", "'article'", "0.5", convention="article", eps=0.5)
    assert vicreg_loss(VIEW, VIEW, convention="article", eps=0) == vicreg_loss(
        VIEW, VIEW, convention="article"
    )


def test_gamma_must_be_above_zero() -> None:
    refused(ValueError, "gamma", "above 0", gamma=0)


@pytest.mark.parametrize("value", [1, np.float32(2.0), np.int64(3)], ids=repr)
def test_any_real_number_is_a_weight(value: object) -> None:
    got = vicreg_loss(VIEW, -VIEW, invariance_weight=value, variance_weight=0, covariance_weight=0)
    assert float(got) == pytest.approx(float(value) * float(invariance_loss(VIEW, -VIEW)))


def test_methods() -> None:
    refused(ValueError, "method", "'auto', 'gram' or 'covariance'", "'fast'", method="fast")
    refused(ValueError, "method", method=np.asarray(["auto", "gram"]))


#: Of views of three axes; what is wrong with them, and the words for it.
IMAGE = np.random.default_rng(1).standard_normal((3, 2, 4))
BAD_AXES = [
    (ValueError, {"feature_axis": 3}, ("feature_axis must be an axis of", "from -3 to 2; got 3")),
    (ValueError, {"feature_axis": (0, -4)}, ("feature_axis", "from -3 to 2; got -4")),
    (ValueError, {"sample_axis": 3}, ("sample_axis must be an axis of", "from -3 to 2; got 3")),
    (ValueError, {"sample_axis": [0, -4]}, ("sample_axis", "from -3 to 2; got -4")),
    (ValueError, {"feature_axis": (1, 1)}, ("feature_axis", "twice", "(1, 1)", "of 3 axes")),
    (ValueError, {"feature_axis": (-1, 2)}, ("feature_axis", "twice", "(-1, 2)")),
    (ValueError, {"sample_axis": (0, -3)}, ("sample_axis", "twice", "(0, -3)")),
    (ValueError, {"sample_axis": 2}, ("feature_axis and sample_axis", "twice", "(-1,) and (2,)")),
    (ValueError, {"feature_axis": (0, 1), "sample_axis": (-2, 2)}, ("(0, 1) and (-2, 2)",)),
    (ValueError, {"feature_axis": (2, 0, 1)}, ("must leave an axis of", "(2, 0, 1) of 3 axes")),
    (ValueError, {"feature_axis": ()}, ("feature_axis must be one axis or more", "got ()")),
    (ValueError, {"sample_axis": []}, ("sample_axis must be one axis or more", "got []")),
    *(
        (TypeError, {name: bad}, (f"{name} must be an integer or a sequence of integers", shown))
        for name in ("feature_axis", "sample_axis")
        for bad, shown in (
            (1.0, "1.0"),
            ("last", "'last'"),
            ("", "''"),
            (True, "True"),
            ((0, True), "(0, True)"),
            ([0, 1.0], "[0, 1.0]"),
            ((0, (1,)), "(0, (1,))"),
            ({0, 1}, "{0, 1}"),
            (np.asarray([0, 1]), "array([0, 1])"),
        )
    ),
    (TypeError, {"feature_axis": None}, ("feature_axis", "got None")),
]


@pytest.mark.parametrize(("error", "axes", "parts"), BAD_AXES, ids=str)
def test_axes(error: type[Exception], axes: dict, parts: tuple[str, ...]) -> None:
    refused(error, *parts, views=(IMAGE, IMAGE), **axes)
    vcreg_refused(error, *parts, z=IMAGE, **axes)
    calls = [lambda: invariance_loss(IMAGE, IMAGE, **axes)]
    calls += [lambda f=f: f(IMAGE, **axes) for f in (variance_loss, covariance_loss, diagnose)]
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


def test_any_integers_are_axes() -> None:
    wanted = vicreg_loss(IMAGE, -IMAGE, feature_axis=(1, 2))
    for axes in ([1, 2], range(1, 3), (np.int64(1), np.uint8(2)), (np.asarray(1), -1)):
        assert vicreg_loss(IMAGE, -IMAGE, feature_axis=axes) == wanted


def test_n_not_above_the_correction() -> None:
    from dataclasses import replace

    four = replace(conventions["official"], name="four", covariance_correction=4)
    refused(ValueError, "views[0]", "at least 5 samples", "got 4", convention=four)


def test_vcreg_publishes_no_weights() -> None:
    refused(ValueError, "variance_weight must be given", "'vcreg'", convention="vcreg")
    given = {"convention": "vcreg", "variance_weight": 1, "covariance_weight": 1}
    parts = "invariance_weight", "no invariance term; got 2.0"
    refused(ValueError, *parts, invariance_weight=2, **given)
    weight = np.asarray(1.0)
    assert vicreg_loss(VIEW, VIEW, **given) == vicreg_loss(
        VIEW, VIEW, **given | {"variance_weight": weight}
    )
    one = np.ones((4, 1))
    refused(ValueError, "at least 2 features", "d(d - 1)", views=(one, one), **given)
    assert np.isfinite(vicreg_loss(VIEW, VIEW, **given))
    with pytest.raises(ValueError, match="no invariance term"):
        invariance_loss(VIEW, VIEW, convention="vcreg")


def test_single_terms_name_their_own_arguments() -> None:
    with pytest.raises(ValueError, match=r"^z2 must have the shape of z1"):
        invariance_loss(VIEW, VIEW[:, :5])
    with pytest.raises(TypeError, match=r"^z must be an array.* got list"):
        variance_loss([1.0])
    with pytest.raises(ValueError, match=r"^z must have at least 2 samples"):
        covariance_loss(VIEW[:1])
    with pytest.raises(ValueError, match=r"^gamma"):
        variance_loss(VIEW, gamma=-1)


def vcreg_refused(error: type[Exception], *parts: str, z: object = VIEW, **settings) -> None:
    """Assert that both functions of VCReg refuse `z`, with every one of `parts` in the message."""
    given = {"variance_weight": 1, "covariance_weight": 1} | settings
    for function in (vcreg_loss, vcreg_value_and_grad):
        with pytest.raises(error) as caught:
            function(z, **given)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["variance_weight", "covariance_weight"])
def test_vcregs_weights_must_be_given(argument: str) -> None:
    vcreg_refused(
        ValueError, f"{argument} must be given", "publishes no weights", **{argument: None}
    )
    weights = {"variance_weight": 1, "covariance_weight": 1}
    del weights[argument]
    for function in (vcreg_loss, vcreg_value_and_grad):
        with pytest.raises(TypeError, match=f"keyword-only argument: '{argument}'"):
            function(VIEW, **weights)


@pytest.mark.parametrize("argument", ["gamma", "eps", "delta", "variance_weight"])
def test_vcregs_numbers(argument: str) -> None:
    for value in (-1.0, float("nan"), float("inf"), 10**400):
        vcreg_refused(ValueError, argument, repr(value), penalty="smooth_l1", **{argument: value})
    for value in ("1", True):
        vcreg_refused(TypeError, f"{argument} must be a number", **{argument: value})


def test_delta() -> None:
    """Above 0; and where there is no linear part it has nothing to say."""
    vcreg_refused(ValueError, "delta", "above 0", "got 0", penalty="smooth_l1", delta=0)
    vcreg_refused(ValueError, "delta must be left at 1.0", "'square'", "got 0.5", delta=0.5)


def test_vcregs_choices() -> None:
    vcreg_refused(ValueError, "penalty must be 'square' or 'smooth_l1'", "'l1'", penalty="l1")
    vcreg_refused(ValueError, "penalty", "None", penalty=None)
    vcreg_refused(ValueError, "method", "'fast'", method="fast")


def test_smooth_l1_has_no_gram_route() -> None:
    smooth_l1 = {"penalty": "smooth_l1", "method": "gram"}
    vcreg_refused(ValueError, "method must be 'auto' or 'covariance'", "'smooth_l1'", **smooth_l1)


@pytest.mark.representative
def test_what_vcreg_is_not_for(xp: Backend) -> None:
    vcreg_refused(TypeError, "z must be an array", "list", z=[1.0])
    vcreg_refused(ValueError, "z must have at least two axes", "(4,)", z=xp.asarray(np.ones(4)))
    one = xp.asarray(np.ones((4, 1)))
    vcreg_refused(ValueError, "z must have at least 2 features", "d(d - 1)", "got 1", z=one)


@pytest.mark.representative
def test_samples_and_features_are_counted_along_all_their_axes(xp: Backend) -> None:
    one, single = xp.asarray(np.ones((1, 3, 5))), xp.asarray(np.ones((1, 1, 5)))
    along = "z must have at least 2 samples along the axes (0, 1)"
    vcreg_refused(ValueError, along, "got 1 in", z=single)
    vcreg_refused(ValueError, "at least 2 samples; got 1 in", "(1, 3, 5)", z=one, sample_axis=0)
    given = {"convention": "vcreg", "variance_weight": 1, "covariance_weight": 1}
    refused(ValueError, "at least 2 samples; got 1", views=(one, one), **given)
    assert np.isfinite(xp.numpy(vicreg_loss(one, one, sample_axis=(0, 1), **given)))
    thin = xp.asarray(np.ones((3, 1, 1)))
    vcreg_refused(ValueError, "at least 2 features", "got 1 in", z=thin, feature_axis=(1, 2))
    thin = xp.asarray(np.ones((3, 1, 2)))
    vcreg_loss(thin, variance_weight=1, covariance_weight=1, feature_axis=(1, 2))
    vcreg_refused(ValueError, "at least 2 samples; got 1 in", z=xp.asarray(np.ones((1, 5))))
    # Which axis is the features' decides what the others count.
    turned = xp.asarray(np.ones((1, 5, 1)))
    along = "at least 2 samples along the axes (0, 2)"
    vcreg_refused(ValueError, along, "got 1 in", z=turned, feature_axis=1)


class TestSampleWeight:
    """The check alone, of which every function of samples has the words."""

    @staticmethod
    def check(weight: object, z: object = IMAGE, axes: Axes | None = None) -> None:
        library = library_of(z)
        checked_sample_weight(weight, z, "z", axes or Axes((-1,), pooled=True), str(library))

    def refused(self, error: type[Exception], *parts: str, weight: object, **given) -> None:
        with pytest.raises(error) as caught:
            self.check(weight, **given)
        for part in ("sample_weight must ", *parts):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.representative
    def test_what_is_a_weight(self, xp: Backend) -> None:
        z = xp.asarray(IMAGE)
        for shape in ((3, 2), (1, 2), (3, 1), (1, 1), (2,), (1,), ()):
            for values in (np.ones(shape), np.zeros(shape)):
                for dtype in xp.dtypes:
                    self.check(xp.asarray(values, dtype), z)
        weight = xp.asarray(np.ones((3, 2)))
        self.check(weight >= 0, z)

    @pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "longdouble"])
    def test_its_dtype(self, dtype: str) -> None:
        self.check(np.ones((3, 2), dtype))

    @pytest.mark.parametrize("dtype", ["complex64", "O", "U1", "M8[s]", "m8[s]"])
    def test_dtypes_that_count_nothing(self, dtype: str) -> None:
        parts = "dtype of booleans, integers or real", str(np.dtype(dtype))
        self.refused(TypeError, *parts, weight=np.zeros((3, 2), dtype))

    @pytest.mark.representative
    @pytest.mark.parametrize("shape", [(2, 3), (3,), (3, 2, 1), (3, 2, 4), (2, 2), (0,), (0, 2)])
    def test_its_shape(self, xp: Backend, shape: tuple[int, ...]) -> None:
        if xp.name == "dask" and 0 in shape:
            pytest.skip("Dask makes no chunks of nothing")
        parts = "broadcasts to (3, 2), the shape of z without its features", f"got {shape}"
        self.refused(ValueError, *parts, weight=xp.asarray(np.ones(shape)), z=xp.asarray(IMAGE))

    def test_its_shape_follows_the_axes_of_the_view(self) -> None:
        self.check(np.ones((3, 4)), axes=Axes((1,), (2,)))
        self.check(np.ones(4), axes=Axes((1, 0), (2,)))
        turned = Axes((1,), (2, 0))
        self.check(np.ones((3, 4)), axes=turned)
        self.refused(ValueError, "to (3, 4)", "(4, 3)", weight=np.ones((4, 3)), axes=turned)

    def test_what_is_no_array_of_the_library(self) -> None:
        library = "array of the library of z, numpy"
        for weight in ([1.0, 0.0], 1.0, "w", object(), np.ndarray):
            self.refused(TypeError, library, type(weight).__name__, weight=weight)
        torch = pytest.importorskip("torch")
        self.refused(TypeError, library, "an array of torch", weight=torch.ones(3, 2))
        masked = np.ma.masked_array(np.ones((3, 2)), False)
        self.refused(TypeError, "dense array", "a masked array", weight=masked)

    @pytest.mark.parametrize("bad", [-1.0, -1e-30, float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
    def test_values_that_are_there_to_be_seen(self, library: str, bad: float) -> None:
        xp = Backend(library)
        pytest.importorskip(library)
        weight = np.ones((3, 2))
        weight[1, 0] = bad
        z = xp.asarray(IMAGE)
        self.refused(ValueError, "0 or more", repr(bad), weight=xp.asarray(weight), z=z)

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_values_beyond_the_dtype_of_the_computation(self, library: str, dtype: str) -> None:
        xp = Backend(library)
        pytest.importorskip(library)
        z, weight = xp.asarray(IMAGE, dtype), xp.asarray(np.full((3, 2), 1e300))
        self.refused(ValueError, "finite in the dtype", "got 1e+300", weight=weight, z=z)
        self.check(xp.asarray(np.full((3, 2), float(np.finfo(np.float32).max))), z)

    def test_the_functions_name_their_first_view(self) -> None:
        of_loss = r"the shape of views\[0\] without its features; got \(9,\)"
        with pytest.raises(ValueError, match=of_loss):
            vicreg_loss(IMAGE, IMAGE, sample_weight=np.ones(9))

    def test_integers_below_0(self) -> None:
        self.refused(ValueError, "0 or more", "got -2", weight=np.asarray([1, -2]))

    def test_it_is_where_the_view_is(self) -> None:
        xp = pytest.importorskip("array_api_strict")
        z, weight = xp.ones((4, 6)), xp.ones(4, device=xp.Device("device1"))
        self.refused(ValueError, "device of z", "device1", "CPU_DEVICE", weight=weight, z=z)

    def test_nothing_is_differentiated_by_it(self) -> None:
        torch = pytest.importorskip("torch")
        weight = torch.ones(2, requires_grad=True)
        given = {"weight": weight, "z": torch.ones(3, 2, 4)}
        self.refused(ValueError, "not require a gradient", "sample_weight.detach()", **given)

    def test_values_that_are_waited_for_are_not_asked(self) -> None:
        torch = pytest.importorskip("torch")
        z, bad = torch.ones(3, 2, 4), torch.tensor([1.0, -1.0])
        torch.vmap(lambda weight: self.check(weight, z) or weight)(torch.stack([bad, bad]))
        compiled = torch.compile(
            lambda z, weight: self.check(weight, z) or 2 * weight, fullgraph=True, backend="eager"
        )
        compiled(z, bad)
        self.check(bad.to("meta"), z.to("meta"))
        jax = pytest.importorskip("jax")
        z, bad = jax.numpy.ones((3, 2, 4)), jax.numpy.asarray([1.0, -1.0])
        self.check(bad, z)
        jax.make_jaxpr(lambda z, weight: self.check(weight, z) or weight)(z, bad)
