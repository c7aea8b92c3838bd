"""PyTorch's graphs and modules used again and again, as `test_stateful` uses arrays."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import definition
import numpy as np
import pytest
from errors import rounding
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from one_graph import in_one_graph
from test_properties import WEIGHTS, has_one_derivative, occurrences, scales
from test_stateful import FEW_OR_MANY, SEEDS, run

from vicreg import Convention, conventions
from vicreg.tools.dtypes import HALF, UNIT_ROUNDOFF

torch = pytest.importorskip("torch")

from vicreg.torch import AttachedVCReg, VCReg, VICRegLoss, attach_vcreg  # noqa: E402

Tensor = torch.Tensor

#: What PyTorch says where a graph is gone back through that is not there any more, or whose
#: tensors have changed.
GONE = re.compile("second time|modified by an inplace operation")

DTYPES = ("float64", "float32", "bfloat16", "float16")
SHAPES = st.tuples(st.integers(2, 6), st.integers(2, 6))


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Return values of which features have a standard deviation of 1 or so."""
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(0.5, 1.5, shape[-1]) * rng.standard_normal(shape) + 1


def unless_gone(call: Callable[[], Any]) -> Any:
    """Return what `call` does, None where what it goes back through is gone."""
    try:
        return call()
    except RuntimeError as error:
        if GONE.search(str(error)):
            return None
        raise


def number(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else value


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().copy()


@dataclass
class Truth:
    """The loss of some views by the definition, its gradients, and how far off each may be."""

    loss: float
    terms: tuple[float, ...]
    gradients: list[np.ndarray]
    of_loss: float
    of_terms: np.ndarray
    of_gradients: float

    @classmethod
    def of(
        cls,
        views: list[np.ndarray],
        convention: Convention,
        weights: tuple[float, ...],
        gamma: float,
        eps: float,
        times: np.ndarray | None,
        dtype: str,
    ) -> Truth | None:
        """None where the loss has no one derivative."""
        d = views[0].shape[1]
        repeated = views if times is None else [np.repeat(view, times, axis=0) for view in views]
        if not has_one_derivative(repeated, convention, gamma):
            return None
        own_eps = eps if convention.hinge_on == "std" else None
        given: Any = (convention.name, weights, gamma, None, own_eps, times)
        size = scales(repeated, convention, gamma)
        bound = 4 * rounding("float32" if dtype in HALF else dtype, len(repeated[0]), d)
        rounded = UNIT_ROUNDOFF[dtype] if dtype in HALF else 0.0
        most = 1 if times is None else times.max()
        return cls(
            definition.loss(views, *given),
            definition.terms(views, convention.name, gamma, None, own_eps, times),
            definition.gradients(lambda views: definition.loss(views, *given), views),
            bound * size.of_loss(weights),
            bound * size.terms,
            (bound + rounded) * most * size.of_gradient(weights),
        )


@dataclass
class Total:
    """What a ``.grad`` holds: the sum of several gradients, and how far off it may be."""

    value: Any = 0.0
    error: float = 0.0

    def add(self, gradient: np.ndarray, error: float, dtype: str) -> None:
        self.value = self.value + gradient
        # The sum is rounded in its dtype.
        self.error += error + UNIT_ROUNDOFF[dtype] * float(np.abs(self.value).max())


@dataclass
class Leaf:
    tensor: Tensor
    dtype: str
    total: Total = field(default_factory=Total)


@dataclass
class Graph:
    """A loss to go back from, with what its gradients were when it was computed."""

    loss: Tensor
    leaves: list[Leaf]
    truth: Truth
    versions: list[tuple[Tensor, int]]  # of what was read, and when
    is_freed: bool = False

    @property
    def has_changed(self) -> bool:
        return any(tensor._version != version for tensor, version in self.versions)

    @property
    def needed(self) -> dict[int, Leaf]:
        return {place: leaf for place, leaf in enumerate(self.leaves) if leaf.tensor.requires_grad}

    def gradients(self, retained: bool, by: str, cotangent: float) -> Any:
        along = torch.full_like(self.loss, cotangent)
        needed = [leaf.tensor for leaf in self.needed.values()]
        if by == "backward":
            self.loss.backward(along, retain_graph=retained)
            return [tensor.grad for tensor in needed]
        return torch.autograd.grad(
            self.loss,
            needed,
            along,
            retain_graph=retained or by == "create_graph",
            create_graph=by == "create_graph",
        )


#: Whether the graph is retained, how one goes back, and from which cotangent.
BACK = st.tuples(
    st.booleans(),
    st.sampled_from(["backward", "grad", "create_graph"]),
    st.sampled_from([1.0, -2.0]),
)


def step(criterion: VICRegLoss, views: list[Tensor], weight: Any, as_terms: bool) -> Any:
    called = criterion.terms if as_terms else criterion
    return called(*views, sample_weight=weight)


class Graphs(RuleBasedStateMachine):
    """A module, and leaves that are used in one loss after another."""

    step = staticmethod(step)
    is_compiled = False

    def __init__(self) -> None:
        super().__init__()
        self.criterion = VICRegLoss()
        self.graphs: list[Graph] = []

    @initialize(
        shape=SHAPES,
        dtype=st.sampled_from(DTYPES),
        needs=st.sampled_from([(True, True), (True, False), (False, True, True)]),
        seed=SEEDS,
    )
    def anew(self, shape: tuple[int, int], dtype: str, needs: tuple[bool, ...], seed: int) -> None:
        self.times, self.weight = None, None
        self.leaves = [
            Leaf(torch.tensor(drawn(seed + place, *shape), dtype=getattr(torch, dtype)), dtype)
            for place in range(len(needs))
        ]
        for leaf, is_needed in zip(self.leaves, needs, strict=True):
            leaf.tensor.requires_grad_(is_needed)

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf.tensor for leaf in self.leaves]

    other_leaves = rule(
        shape=SHAPES,
        dtype=st.sampled_from(DTYPES),
        needs=st.sampled_from([(True, True), (True, False), (False, True, True)]),
        seed=SEEDS,
    )(lambda self, **drawn: self.anew(**drawn))

    @rule(place=st.integers(0, 1), seed=SEEDS)
    def a_step_of_an_optimizer(self, place: int, seed: int) -> None:
        tensor = self.leaves[place].tensor
        with torch.no_grad():
            tensor.copy_(torch.tensor(drawn(seed, *tensor.shape)))

    @rule(data=st.data())
    def weights_of_samples(self, data: st.DataObject) -> None:
        """Others, none, or others in place."""
        n = len(self.tensors[0])
        self.times = data.draw(st.none() | occurrences(n))
        if self.times is None:
            self.weight = None
            return
        weight = torch.tensor(self.times > 0 if self.times.max() == 1 else self.times)
        if self.weight is None or self.weight.dtype != weight.dtype:
            self.weight = weight
        else:
            self.weight.copy_(weight)

    @rule(place=st.integers(0, 1), needs=st.booleans())
    def needs_a_gradient(self, place: int, needs: bool) -> None:
        self.graphs = []  # of which it would be another part
        self.tensors[place].requires_grad_(needs)

    @rule(name=st.sampled_from(["gamma", "eps"]), value=st.sampled_from([0.25, 0.5, 1.0]))
    def a_number(self, name: str, value: float) -> None:
        if name == "gamma" or self.convention.hinge_on == "std":
            setattr(self.criterion, name, value)

    @rule(method=st.sampled_from(["auto", "gram", "covariance"]))
    def a_method(self, method: str) -> None:
        self.criterion.method = method

    @rule(name=st.sampled_from(sorted(set(conventions) - {"vcreg"})))
    def a_convention(self, name: str) -> None:
        self.criterion.convention, self.criterion.eps = name, conventions[name].eps

    @rule(place=st.integers(0, 2), value=st.sampled_from([0.5, 3.0]), learned=st.booleans())
    def a_weight(self, place: int, value: float, learned: bool) -> None:
        before = getattr(self.criterion, WEIGHTS[place])
        if learned and isinstance(before, torch.nn.Parameter):
            with torch.no_grad():
                before.fill_(value)
        elif learned:
            setattr(self.criterion, WEIGHTS[place], torch.nn.Parameter(torch.tensor(value)))
        else:
            if isinstance(before, torch.nn.Parameter):
                delattr(self.criterion, WEIGHTS[place])
            setattr(self.criterion, WEIGHTS[place], value)

    @rule(dtype=st.sampled_from([torch.float64, torch.float32]))
    def module_to(self, dtype: Any) -> None:
        if list(self.criterion.parameters()):
            self.graphs = []  # PyTorch gives parameters other data without a word
        self.criterion.to(dtype)

    @rule(training=st.booleans())
    def module_mode(self, training: bool) -> None:
        self.criterion.train(training)

    @rule(how=st.sampled_from(["deepcopy", "pickle", "save", "state_dict"]))
    def module_copied(self, how: str) -> None:
        before = self.criterion
        if how == "deepcopy":
            self.criterion = copy.deepcopy(before)
        elif how == "pickle":
            self.criterion = pickle.loads(pickle.dumps(before))
        elif how == "save":
            file = io.BytesIO()
            torch.save(before, file)
            file.seek(0)
            self.criterion = torch.load(file, weights_only=False)
        else:
            # Made with the settings, and with other numbers in its parameters.
            given = {name: copy.deepcopy(value) for name, value in before._settings().items()}
            self.criterion = VICRegLoss(**given)
            for parameter in self.criterion.parameters():
                torch.nn.init.zeros_(parameter)
            self.criterion.load_state_dict(before.state_dict())

    @property
    def convention(self) -> Convention:
        return conventions[self.criterion.convention]

    def truth(self) -> Truth | None:
        """What is right now."""
        return Truth.of(
            list(map(values, self.tensors)),
            self.convention,
            tuple(map(number, (getattr(self.criterion, name) for name in WEIGHTS))),
            self.criterion.gamma,
            self.criterion.eps,
            self.times,
            self.leaves[0].dtype,
        )

    @rule(as_terms=st.booleans(), mode=st.sampled_from(["graph", "no_grad", "inference"]))
    def forward(self, as_terms: bool, mode: str) -> None:
        truth = self.truth()
        if truth is None or (self.is_compiled and mode == "inference"):
            return
        modes = {"graph": torch.enable_grad, "no_grad": torch.no_grad}
        with modes.get(mode, torch.inference_mode)():
            loss = self.step(self.criterion, self.tensors, self.weight, as_terms)
        if as_terms:
            loss, *terms = loss
            for term, wanted, bound in zip(terms, truth.terms, truth.of_terms, strict=True):
                assert abs(term.item() - wanted) <= bound
        assert abs(loss.item() - truth.loss) <= truth.of_loss
        if mode == "graph" and any(tensor.requires_grad for tensor in self.tensors):
            read = [*self.tensors, *self.criterion.parameters()]
            read += [] if self.weight is None else [self.weight]
            versions = [(tensor, tensor._version) for tensor in read]
            self.graphs.append(Graph(loss, list(self.leaves), truth, versions))

    @rule(as_terms=st.booleans(), ways=st.lists(BACK, min_size=1, max_size=3))
    def forward_and_back(self, as_terms: bool, ways: list[tuple[bool, str, float]]) -> None:
        before = len(self.graphs)
        self.forward(as_terms, "graph")
        for graph in self.graphs[before:]:
            for way in ways:
                self.back_from(graph, *way)

    @precondition(lambda self: self.graphs)
    @rule(data=st.data(), way=BACK)
    def back(self, data: st.DataObject, way: tuple[bool, str, float]) -> None:
        place = data.draw(st.integers(1, min(len(self.graphs), 4)))
        self.back_from(self.graphs[-place], *way)

    def back_from(self, graph: Graph, retained: bool, by: str, cotangent: float) -> None:
        """An error or the gradient of what the loss was computed from."""
        if self.is_compiled and by == "create_graph":  # of which there is no second derivative
            by = "grad"
        got = unless_gone(lambda: graph.gradients(retained, by, cotangent))
        if got is None:
            assert graph.is_freed or graph.has_changed
            return
        assert not graph.is_freed
        graph.is_freed = not retained and by != "create_graph"
        for (place, leaf), gradient in zip(graph.needed.items(), got, strict=True):
            right = cotangent * graph.truth.gradients[place]
            error = abs(cotangent) * graph.truth.of_gradients
            if by == "backward":
                leaf.total.add(right, error, leaf.dtype)
                right, error = leaf.total.value, leaf.total.error
            assert np.abs(values(gradient) - right).max() <= error

    @rule()
    def zero_grad(self) -> None:
        for leaf in self.leaves:
            leaf.tensor.grad, leaf.total = None, Total()
        self.criterion.zero_grad()


@FEW_OR_MANY
def test_graphs_of_one_module(count: int) -> None:
    run(Graphs, 4 * count, steps=40)


class CompiledGraphs(Graphs):
    """The same, of one compiled step, which is compiled anew for what is new to it."""

    is_compiled = True

    def __init__(self) -> None:
        super().__init__()
        torch.compiler.reset()
        self.step = in_one_graph(step, backend="aot_eager")


@pytest.mark.parametrize(
    "count", [pytest.param(1, id="few"), pytest.param(10, id="many", marks=pytest.mark.long)]
)
def test_graphs_of_one_compiled_step(count: int) -> None:
    with torch._dynamo.config.patch(recompile_limit=100):
        run(CompiledGraphs, count, steps=12)


#: Of VCReg: what it is made with.
SETTINGS = st.fixed_dictionaries(
    {
        "variance_weight": st.sampled_from([1.0, 0.0, 0.5]),
        "covariance_weight": st.sampled_from([2.0, 0.5]),
        "gamma": st.sampled_from([1.0, 2.0]),
        "eps": st.sampled_from([1e-5, 0.25]),
    }
).flatmap(
    lambda numbers: st.sampled_from(
        [numbers, *(numbers | {"penalty": "smooth_l1", "delta": delta} for delta in (0.1, 1.0))]
    )
)


@dataclass
class Regularization:
    """VCReg's loss of an activation, its terms and its gradient, and how far off each may be."""

    terms: tuple[float, float, float]
    gradient: np.ndarray
    of_terms: np.ndarray
    of_gradient: float

    @classmethod
    def of(
        cls, z: np.ndarray, settings: dict[str, Any], times: np.ndarray | None = None
    ) -> Regularization | None:
        """None where it has no one derivative."""
        rows = np.arange(len(z)) if times is None else np.repeat(np.arange(len(z)), times)
        gamma, eps = settings["gamma"], settings["eps"]
        convention = replace(conventions["vcreg"], name="mine", eps=eps)
        if not has_one_derivative([z[rows]], convention, gamma):
            return None
        delta = settings.get("delta")
        weights = settings["variance_weight"], settings["covariance_weight"]

        def loss(views: Any, weights: tuple[float, float] = weights) -> Any:
            return definition.vcreg(views[0][rows], weights, gamma, eps, delta)

        # Those of squares: smooth L1 is no larger, and no steeper.
        size, three = scales([z[rows]], convention, gamma), (0.0, *weights)
        bound = 4 * rounding("float64", len(rows), z.shape[1])
        return cls(
            (loss([z]), loss([z], (1.0, 0.0)), loss([z], (0.0, 1.0))),
            definition.gradients(loss, [z])[0],
            bound * np.array([size.of_loss(three), *size.terms[1:]]),
            bound * (1 if times is None else times.max()) * size.of_gradient(three),
        )


@dataclass
class LayerPass:
    """A pass through a layer of VCReg to go back from."""

    loss: Tensor
    x: Tensor
    incoming: np.ndarray
    right: Regularization | None  # None: nothing is added
    read: list[tuple[Tensor, int]]
    scale: float | None  # None: what it is when one goes back
    is_known: bool = False  # whether its terms have been computed
    is_freed: bool = False

    @property
    def has_changed(self) -> bool:
        return any(tensor._version != version for tensor, version in self.read)


#: What is done with a pass through a layer.
AFTER_A_PASS = st.sampled_from(["read", "in place", "back", "back, retained"])


class Layers(RuleBasedStateMachine):
    """A layer of VCReg, called with the same activation again."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0
        self.passes: list[LayerPass] = []

    @initialize(settings=SETTINGS, seed=SEEDS, shape=SHAPES)
    def anew(self, settings: dict[str, Any], seed: int, shape: tuple[int, int]) -> None:
        self.settings, self.last = settings, None
        self.layer = VCReg(**settings)
        self.another_activation(seed, shape)

    @rule(seed=SEEDS, shape=SHAPES)
    def another_activation(self, seed: int, shape: tuple[int, int]) -> None:
        self.x = torch.tensor(drawn(seed, *shape), requires_grad=True)
        self.times = self.weight = None

    @rule(seed=SEEDS)
    def in_place(self, seed: int) -> None:
        with torch.no_grad():
            self.x.copy_(torch.tensor(drawn(seed, *self.x.shape)))

    @rule(data=st.data())
    def weights_of_samples(self, data: st.DataObject) -> None:
        self.times = data.draw(st.none() | occurrences(len(self.x)))
        if self.times is None or self.weight is None:
            self.weight = None if self.times is None else torch.tensor(self.times)
        else:
            self.weight.copy_(torch.tensor(self.times))

    @rule(training=st.booleans())
    def mode(self, training: bool) -> None:
        self.layer.train(training)

    @rule(scale=st.sampled_from([1.0, 0.25]), is_called=st.booleans())
    def scale(self, scale: float, is_called: bool) -> None:
        self.factor = scale
        self.layer.scale = self.current if is_called else scale

    def current(self) -> float:
        return self.factor

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copied(self, how: str) -> None:
        self.layer.scale = self.factor  # a method of this machine would be copied with it
        pickled = pickle.dumps(self.layer) if how == "pickle" else None
        self.layer = pickle.loads(pickled) if pickled else copy.deepcopy(self.layer)
        self.last = None

    @rule(seed=SEEDS, recorded=st.booleans(), then=st.lists(AFTER_A_PASS, max_size=4))
    def forward(self, seed: int, recorded: bool, then: list[str]) -> None:
        before = len(self.passes)
        self.passed(seed, recorded)
        for passed in self.passes[before:]:
            for what in then:
                if what == "read":
                    self.terms_are_read()
                elif what == "in place":
                    self.in_place(seed)
                else:
                    self.back_from(passed, what == "back, retained")

    def passed(self, seed: int, recorded: bool) -> None:
        right = Regularization.of(values(self.x), self.settings, self.times)
        if right is None:
            return
        incoming = drawn(seed, *self.x.shape)
        with torch.enable_grad() if recorded else torch.no_grad():
            y = self.layer(self.x, self.weight)
            assert torch.equal(y, self.x)
            loss = (torch.tensor(incoming) * y).sum()
        if not recorded:
            return
        read = [self.x] + ([] if self.weight is None else [self.weight])
        passed = LayerPass(
            loss=loss,
            x=self.x,
            incoming=incoming,
            right=right if self.layer.training else None,
            read=[(tensor, tensor._version) for tensor in read],
            scale=None if callable(self.layer.scale) else self.layer.scale,
        )
        self.passes.append(passed)
        if self.layer.training:
            self.last = passed

    @rule()
    def terms_are_read(self) -> None:
        """They are those of the last pass; once known, whatever becomes of its input."""
        last = self.last
        if last is None or (last.has_changed and not last.is_known):
            with pytest.raises(RuntimeError, match="last_terms must be read"):
                _ = self.layer.last_terms
            return
        last.is_known = True
        for term, right, bound in zip(
            self.layer.last_terms, last.right.terms, last.right.of_terms, strict=True
        ):
            assert abs(term.item() - right) <= bound

    @precondition(lambda self: self.passes)
    @rule(data=st.data(), retained=st.booleans())
    def back(self, data: st.DataObject, retained: bool) -> None:
        place = data.draw(st.integers(1, min(len(self.passes), 4)))
        self.back_from(self.passes[-place], retained)

    def back_from(self, passed: LayerPass, retained: bool) -> None:
        got = unless_gone(
            lambda: torch.autograd.grad(passed.loss, passed.x, retain_graph=retained)
        )
        if got is None:
            assert passed.is_freed or passed.has_changed
            return
        assert not passed.is_freed
        passed.is_freed = not retained
        right, error = passed.incoming, 0.0
        if passed.right is not None:
            passed.is_known = True
            factor = self.factor if passed.scale is None else passed.scale
            right = right + factor * passed.right.gradient
            error = factor * passed.right.of_gradient
        error += UNIT_ROUNDOFF["float64"] * np.abs(right).max()  # of the sum
        assert np.abs(values(got[0]) - right).max() <= error


@FEW_OR_MANY
def test_passes_through_one_layer(count: int) -> None:
    run(Layers, 16 * count, steps=40)


class Attached(RuleBasedStateMachine):
    """A model with layers that are attached and removed, trained, copied and evaluated."""

    names = ("0", "1", "2")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        linear = (torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        self.model = torch.nn.Sequential(linear[0], torch.nn.Tanh(), linear[1]).double()
        self.layers: list[tuple[AttachedVCReg, dict[str, Any]]] = []
        self.not_removable: list[dict[str, Any]] = []  # of a model that is a copy

    @initialize(name=st.sampled_from(names), settings=SETTINGS)
    def attach_one(self, name: str, settings: dict[str, Any]) -> None:
        self.attach(name, settings, 1.0)

    @rule(name=st.sampled_from(names), settings=SETTINGS, scale=st.sampled_from([1.0, 0.25]))
    def attach(self, name: str, settings: dict[str, Any], scale: float) -> None:
        attached = attach_vcreg(self.model, name, scale=scale, **settings)
        self.layers.append((attached, settings | {"name": name, "scale": scale}))

    @precondition(lambda self: self.layers)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        attached, _ = self.layers.pop(data.draw(st.integers(0, len(self.layers) - 1)))
        attached.remove()

    @rule()
    def copied(self) -> None:
        """The copy has layers of its own, which stay when those of the first are removed."""
        self.model = copy.deepcopy(self.model)
        for attached, settings in self.layers:
            self.not_removable.append(settings)
            attached.remove()
        self.layers = []

    @rule(training=st.booleans(), place=st.integers(0, 2))
    def mode(self, training: bool, place: int) -> None:
        self.model.train(training) if place == 0 else self.model[place].train(training)

    @rule(rate=st.sampled_from([0.1, -0.1]))
    def a_step_of_an_optimizer(self, rate: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += rate * parameter.cos()

    @rule(seed=SEEDS, n=st.integers(3, 6))
    def trained(self, seed: int, n: int) -> None:
        """The gradients are those of the layers' losses, added at each activation."""
        x, incoming = torch.tensor(drawn(seed, n, 3)), torch.tensor(drawn(seed + 1, n, 2))
        (w0, b0), (w2, b2) = (
            [parameter.detach() for parameter in self.model[place].parameters()]
            for place in (0, 2)
        )
        h0 = x @ w0.T + b0
        h1 = torch.tanh(h0)
        activations = {"0": h0, "1": h1, "2": h1 @ w2.T + b2}
        added = {name: torch.zeros_like(h) for name, h in activations.items()}
        errors = dict.fromkeys(activations, 0.0)
        for settings in [*self.not_removable, *(own for _, own in self.layers)]:
            name, scale = settings["name"], settings["scale"]
            if not self.model[int(name)].training:
                continue
            right = Regularization.of(values(activations[name]), settings)
            if right is None:
                return
            added[name] += scale * torch.tensor(right.gradient)
            errors[name] += scale * right.of_gradient

        self.model.zero_grad()
        (incoming * self.model(x)).sum().backward()
        got = [parameter.grad for parameter in self.model.parameters()]
        # Back through the layers, and the same with absolute values for what the errors become;
        # that of a product is that of a sum of so many. A tanh is no steeper than 1.
        u = 4 * (n + 8) * UNIT_ROUNDOFF["float64"]
        g2, e2 = incoming + added["2"], errors["2"] + u * (incoming.abs() + added["2"].abs())
        g1, e1 = g2 @ w2 + added["1"], e2 @ w2.abs() + errors["1"] + u * added["1"].abs()
        g0, e0 = g1 * (1 - h1**2) + added["0"], e1 + errors["0"] + u * added["0"].abs()
        right = [g0.T @ x, g0.sum(0), g2.T @ h1, g2.sum(0)]
        bounds = [e0.T @ x.abs(), e0.sum(0), e2.T @ h1.abs(), e2.sum(0)]
        for gradient, wanted, bound in zip(got, right, bounds, strict=True):
            assert ((gradient - wanted).abs() <= 2 * bound).all()


@FEW_OR_MANY
def test_layers_that_are_attached_to_one_model(count: int) -> None:
    run(Attached, 10 * count, steps=20)
