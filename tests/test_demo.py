"""The first real run: what it trains on, what it measures, what it shows."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from vicreg import Diagnosis, diagnose
from vicreg.tools.demo import digits, encoder, features, report, study
from vicreg.tools.demo.study import (
    NO_COVARIANCE,
    NO_VARIANCE,
    TRAINED,
    UNTRAINED,
    VICREG,
    DivergedError,
    run_study,
)
from vicreg.tools.requirements import RequirementError, ToolError, require


@pytest.fixture(scope="module")
def short() -> study.Study:
    """Enough epochs for what theory promises to be seen."""
    return run_study("numpy", epochs=30, seed=2)


def test_an_outcome_is_what_the_embeddings_diagnosis_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def diagnosed(z: np.ndarray) -> Diagnosis:
        seen.append(diagnose(z))
        return seen[-1]

    monkeypatch.setattr(study, "diagnose", diagnosed)
    outcomes = run_study("numpy", epochs=1, seed=2).outcomes
    for outcome, diagnosis in zip(outcomes.values(), seen, strict=True):
        assert outcome.mean_std == diagnosis.mean_std
        assert outcome.effective_rank == diagnosis.effective_rank
        assert outcome.rank_limit == diagnosis.rank_limit == diagnosis.d
        assert diagnosis.n == 1797 // 4
        np.testing.assert_array_equal(outcome.singular_values, diagnosis.singular_values)


def test_without_variance_the_features_collapse(short: study.Study) -> None:
    outcomes = short.outcomes
    assert outcomes[NO_VARIANCE].mean_std < 0.1 * outcomes[VICREG].mean_std
    assert outcomes[VICREG].mean_std > 0.5


def test_without_covariance_the_rank_falls(short: study.Study) -> None:
    outcomes = short.outcomes
    assert outcomes[NO_COVARIANCE].effective_rank < 0.8 * outcomes[VICREG].effective_rank


def test_the_probe_is_better_with_every_term(short: study.Study) -> None:
    accuracy = {name: outcome.probe_accuracy for name, outcome in short.outcomes.items()}
    # Two in a hundred of the 449 held-out images: more than rounding moves.
    assert accuracy[VICREG] > accuracy[NO_COVARIANCE] + 0.02
    assert accuracy[NO_VARIANCE] < accuracy[NO_COVARIANCE] - 0.02


def test_the_variants_start_alike_and_the_untrained_one_is_where_they_start() -> None:
    found = run_study("numpy", epochs=1, seed=3)
    assert list(found.outcomes) == [*TRAINED, UNTRAINED]
    assert found.outcomes[UNTRAINED].history == []
    # The same layers and batches: the unweighted terms of the first epoch begin alike.
    again = run_study("numpy", epochs=1, seed=3)
    for name in TRAINED:
        assert found.outcomes[name].history == again.outcomes[name].history
    other = run_study("numpy", epochs=1, seed=4)
    assert other.outcomes[VICREG].history != found.outcomes[VICREG].history


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_every_library_trains_the_same_encoder(backend: str) -> None:
    """The framework's autodiff and optimiser against the hand-written ones, for one epoch."""
    pytest.importorskip(backend)
    if backend == "jax":
        pytest.importorskip("optax")
    seen: list[tuple[str, int]] = []
    found = run_study(
        backend, epochs=1, seed=2, on_epoch=lambda name, epoch, terms: seen.append((name, epoch))
    )
    assert seen == [(name, 1) for name in TRAINED]
    wanted = run_study("numpy", epochs=1, seed=2)
    for name in TRAINED:
        (got,), (right,) = found.outcomes[name].history, wanted.outcomes[name].history
        # float32 through five steps of Adam, which divides by a root of small squares.
        np.testing.assert_allclose(got, right, rtol=2e-2)


def test_divergence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        encoder.Adam,
        "updated",
        lambda self, layers, gradients: [
            encoder.Layer(layer.weight * np.nan, layer.bias) for layer in layers
        ],
    )
    with pytest.raises(DivergedError, match=r"VICReg \(this loss\): training diverged in epoch 1"):
        run_study("numpy", epochs=2)


def test_divergence_in_the_last_step_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = len(digits.load_digits(0).train_images) // study.BATCH_SIZE
    updated, calls = encoder.Adam.updated, itertools.count(1)

    def last_is_nan(self: encoder.Adam, *arguments: list) -> list[encoder.Layer]:
        scale = np.nan if next(calls) == steps else 1.0
        return [encoder.Layer(w * scale, b) for w, b in updated(self, *arguments)]

    monkeypatch.setattr(encoder.Adam, "updated", last_is_nan)
    with pytest.raises(DivergedError, match="diverged in its last step"):
        run_study("numpy", epochs=1)


def test_the_digits_are_split() -> None:
    data = digits.load_digits(0)
    assert len(data.train_images) + len(data.test_images) == 1797
    assert len(data.test_images) == 1797 // 4
    assert data.train_images.dtype == np.float32
    assert 0 <= data.train_images.min() < data.train_images.max() <= 1
    assert set(data.test_labels) == set(range(10))
    assert not np.array_equal(data.test_labels, digits.load_digits(1).test_labels)


def test_views_are_two_augmentations_of_the_same_images() -> None:
    images = digits.load_digits(0).train_images
    pairs = list(digits.batches(images, 256, np.random.default_rng(0)))
    assert len(pairs) == len(images) // 256
    for first, second in pairs:
        assert first.shape == second.shape == (256, 8, 8)
        assert first.dtype == np.float32
        assert first.min() >= 0
        assert first.max() <= 1
        assert not np.array_equal(first, second)
        own = np.abs(first - second).mean()
        shuffled = np.abs(first - np.roll(second, 1, axis=0)).mean()
        assert own < 0.75 * shuffled


def test_an_image_moved_by_nothing_is_itself() -> None:
    images = digits.load_digits(0).train_images[:5]
    y, x = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    here = [np.broadcast_to(c, (5, 8, 8)) for c in (y, x)]
    np.testing.assert_allclose(digits._interpolated(images, *here), images, atol=1e-6)
    down = digits._interpolated(images, here[0] - 1, here[1])
    np.testing.assert_allclose(down[:, 1:], images[:, :-1], atol=1e-6)
    np.testing.assert_allclose(down[:, 0], 0, atol=1e-6)


def test_the_encoders_backward_pass_is_the_derivative() -> None:
    """Against the complex step: exact but for float64's rounding."""
    rng = np.random.default_rng(0)
    widths = (5, 4, 6, 3)
    layers = [
        encoder.Layer(rng.standard_normal((a, b)), rng.standard_normal(b))
        for a, b in itertools.pairwise(widths)
    ]
    images, cotangent = rng.standard_normal((7, 5)), rng.standard_normal((7, 3))
    outputs = encoder.forward(layers, images, np)
    got = encoder.backward(layers, outputs, cotangent, np)

    def value(layers: list) -> complex:
        x = images
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = np.where(x.real > 0, x, 0)
        return np.sum(cotangent * (x @ layers[-1][0] + layers[-1][1]))

    for place, layer in enumerate(layers):
        for part in range(2):
            for index in np.ndindex(layer[part].shape):
                moved = [[p.astype(complex) for p in one] for one in layers]
                moved[place][part][index] += 1e-30j
                wanted = value(moved).imag / 1e-30
                assert got[place][part][index] == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_adam_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    layers = [encoder.Layer(rng.standard_normal((3, 2)), rng.standard_normal(2))]
    theirs = [torch.tensor(part, requires_grad=True) for part in layers[0]]
    ours, optimizer = encoder.Adam(layers, np), torch.optim.Adam(theirs, lr=encoder.LEARNING_RATE)
    for _ in range(4):
        gradients = [encoder.Layer(rng.standard_normal((3, 2)), rng.standard_normal(2))]
        for parameter, gradient in zip(theirs, gradients[0], strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        layers = ours.updated(layers, gradients)
    for part, parameter in zip(layers[0], theirs, strict=True):
        np.testing.assert_allclose(part, parameter.detach().numpy(), rtol=1e-12)


class TestFeatures:
    rng = np.random.default_rng(0)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_constant_batch(self, dtype: type) -> None:
        z = np.full((9, 4), 0.3, dtype)
        assert np.isnan(features.correlations(z, np.ones(z.shape[1], dtype=bool))).all()
        labels = np.arange(9) % 3
        assert 0 <= features.probe_accuracy(z, labels, z, labels) <= 1

    def test_correlations(self) -> None:
        z = self.rng.standard_normal((50, 3))
        z[:, 2] = -2 * z[:, 0] + 1
        np.testing.assert_allclose(
            features.correlations(z, np.zeros(z.shape[1], dtype=bool)),
            np.corrcoef(z, rowvar=False),
            atol=1e-12,
        )

    def test_probe(self) -> None:
        labels = np.arange(60) % 2
        z = self.rng.standard_normal((60, 3)) + 10 * labels[:, None]
        assert features.probe_accuracy(z, labels, z, labels) == 1
        assert features.probe_accuracy(z, labels, z, 1 - labels) == 0


class TestReport:
    def test_what_is_said_follows_from_the_numbers(self, short: study.Study) -> None:
        assert report.findings(short)[0].startswith("Without the variance term the features coll")
        assert report.findings(short)[1].startswith("Without the covariance term the effective r")
        assert "falls" in report.findings(short)[1]
        vicreg = short.outcomes[VICREG]
        same = dict.fromkeys(short.outcomes, vicreg)
        unmoved = report.findings(dataclasses.replace(short, outcomes=same))
        assert "no collapse after 30 epochs" in unmoved[0]
        assert "no clear fall after 30 epochs" in unmoved[1]

    def test_the_table_has_each_variant_and_measure(self, short: study.Study) -> None:
        from rich.console import Console

        console = Console(width=80, record=True, file=None, force_terminal=False)
        with console.capture() as captured:
            console.print(report.results_table(short))
        shown = captured.get()
        for name, outcome in short.outcomes.items():
            (row,) = (line for line in shown.splitlines() if name in line)
            assert f"{outcome.mean_std:.4f}" in row
            assert f"{outcome.effective_rank:.1f} of {outcome.rank_limit}" in row
            assert f"{outcome.probe_accuracy:.1%}" in row

    def test_progress_on_a_terminal(self) -> None:
        from rich.console import Console

        console = Console(width=100, force_terminal=True, file=None)
        terms = encoder.TermValues(1.0, 0.25, 0.5, 0.75)
        with console.capture() as captured, report.training_progress(console, 2) as on_epoch:
            on_epoch(VICREG, 1, terms)
            on_epoch(VICREG, 2, terms)
        assert "inv 0.25 var 0.5 cov 0.75" in captured.get()


class TestPlot:
    def test_the_figure_shows_every_variant(self, short: study.Study) -> None:
        pytest.importorskip("matplotlib")
        from vicreg.tools.demo.plot import draw

        figure = draw(short)
        titles = [axis.get_title() for axis in figure.axes]
        for name in short.outcomes:
            assert any(title.startswith(name) for title in titles)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(short.outcomes)
        for term, axis in zip(("invariance", "variance", "covariance"), figure.axes, strict=False):
            line = axis.get_lines()[0]
            history = [getattr(terms, term) for terms in short.outcomes[VICREG].history]
            np.testing.assert_array_equal(line.get_ydata(), history)

    def test_a_full_collapse_can_be_drawn(self, short: study.Study, tmp_path: Path) -> None:
        """Zeros on logarithmic axes, and correlations that are not defined."""
        pytest.importorskip("matplotlib")
        from vicreg.tools.demo.plot import draw

        dead = dataclasses.replace(
            short.outcomes[NO_VARIANCE],
            history=[encoder.TermValues(0.0, 0.0, 0.99, 0.0)] * short.epochs,
            mean_std=0.0,
            effective_rank=0.0,
            singular_values=np.zeros(64),
            correlations=np.full((64, 64), np.nan),
        )
        collapsed = dataclasses.replace(short, outcomes=short.outcomes | {NO_VARIANCE: dead})
        figure = draw(collapsed)
        figure.savefig(tmp_path / "demo.png")
        assert any("constant features" in axis.get_title() for axis in figure.axes)

    def test_nothing_in_the_figure_overlaps(self, short: study.Study) -> None:
        pytest.importorskip("matplotlib")
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from vicreg.tools.demo.plot import draw

        figure = draw(short)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = canvas.get_renderer()
        boxes = [
            figure.legends[0].get_window_extent(drawn),
            figure._suptitle.get_window_extent(drawn),
        ]
        boxes += [axis.get_tightbbox(drawn) for axis in figure.axes]
        for place, box in enumerate(boxes):
            for other in boxes[place + 1 :]:
                overlap = box.intersection(box, other)
                assert overlap is None or min(overlap.width, overlap.height) < 2

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_file(self, short: study.Study, tmp_path: Path, suffix: str) -> None:
        pytest.importorskip("matplotlib")
        from vicreg.tools.demo.plot import save_plot

        file = tmp_path / f"demo{suffix}"
        save_plot(short, file)
        assert file.stat().st_size > 10_000
        assert list(tmp_path.iterdir()) == [file]

    def test_an_existing_file_stays_where_drawing_fails(
        self, short: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib")
        from matplotlib.figure import Figure

        from vicreg.tools.demo.plot import save_plot

        def half(self: Figure, path: Path, **_: object) -> None:
            Path(path).write_text("half")
            raise OSError("disk full")

        monkeypatch.setattr(Figure, "savefig", half)
        file = tmp_path / "demo.png"
        file.write_text("before")
        with pytest.raises(ToolError, match="disk full"):
            save_plot(short, file)
        assert file.read_text() == "before"
        assert list(tmp_path.iterdir()) == [file]


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(RequirementError, match=r"^optax is not installed: pip install optax$"):
        require("numpy", "optax")
