"""Plant faults in the package, one at a time, and check that the default tests find each.

    python tests/planted_faults.py [--list] [WORD ...]

runs the faults whose name contains each WORD, by default all. A fault is a small edit of a formula
in a copy of ``src``; the default tests that concern it run against the copy until one fails. The
exit status is 1 if a fault was not found, or can no longer be planted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src", "vicreg")

#: Tests of values and gradients on every library.
VALUES = ("definition", "published", "accuracy", "vcreg")
#: Tests of automatic differentiation.
DERIVATIVES = ("jax", "mlx", "torch")


@dataclass(frozen=True)
class Fault:
    """One edit: `old`, which must occur once in `file` of the package, is replaced by `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = VALUES


FAULTS = [
    # Centring, the invariance and the hinge.
    Fault(
        "mean divided by n - 1",
        "_core/library.py",
        "/ array.shape[-2]",
        "/ (array.shape[-2] - 1)",
    ),
    Fault(
        "nothing centred",
        "_core/samples.py",
        "            return memory.subtract(xp, shifted, mean)",
        "            return shifted",
    ),
    Fault(
        "nothing centred again for the gradient",
        "_core/samples.py",
        "self._mean = mean\n        self._centred",
        "self._mean = None if mean is None else 0 * mean\n        self._centred",
        ("paths",),
    ),
    Fault(
        "a common offset not removed before the mean",
        "_core/samples.py",
        "shifted = self.z - self.shift",
        "shifted = self.z - 0 * self.shift",
        ("accuracy",),
    ),
    Fault(
        "the first sample subtracted, be it far from all others",
        "_core/samples.py",
        "return xp.maximum(xp.minimum(first, middle), xp.minimum(larger, last))",
        "return first",
        ("hard_input",),
    ),
    Fault(
        "mean of several views over one too few",
        "_core/terms/invariance.py",
        "/ len(z)",
        "/ len(others)",
    ),
    Fault(
        "pairs of several views counted as two views are",
        "_core/objective.py",
        "2.0 / max(views - 1, 1) if pairs is None",
        "1.0 if pairs is None",
    ),
    Fault(
        "chosen pairs of views added, not averaged",
        "_core/objective.py",
        "else 1.0 / len(pairs)",
        "else 1.0",
        ("pairs",),
    ),
    Fault(
        "all pairs of several views, whatever is chosen",
        "_core/objective.py",
        "if self.pairs is None and views == 2 else self.pairs",
        "if views == 2 else None",
        ("pairs",),
    ),
    Fault(
        "the gradient of every pair by the first view of the first pair",
        "_core/terms/invariance.py",
        "            plus(first, change)",
        "            plus(self.pairs[0][0], change)",
        ("pairs",),
    ),
    Fault(
        "hinge without its kink",
        "_core/terms/variance.py",
        "hinge = xp.nonnegative(self.gamma - spread)",
        "hinge = self.gamma - spread",
    ),
    Fault(
        "slope of the hinge beyond its kink",
        "_core/terms/variance.py",
        "return xp.where(active, slope / spread, xp.zeros_like(spread))",
        "return slope / spread",
    ),
    Fault(
        "kink of the slope at 1, whatever gamma is",
        "_core/terms/variance.py",
        "active = spread < self.gamma",
        "active = spread < 1.0",
    ),
    Fault(
        "half the slope of the hinge on the variance",
        "_core/terms/variance.py",
        "return 2.0 * slope *",
        "return 1.0 * slope *",
    ),
    Fault(
        "no eps under the root",
        "_core/terms/variance.py",
        "shifted = variance + self.eps",
        "shifted = variance",
    ),
    Fault(
        "the correction of the variance is 1 in every convention",
        "_core/objective.py",
        " - convention.variance_correction,",
        " - 1,",
    ),
    # The covariance term.
    Fault(
        "positions not averaged in the covariance",
        "_core/objective.py",
        "self._covariance(covariance / counts.positions,",
        "self._covariance(covariance,",
    ),
    Fault(
        "diagonal of C moved to the next column",
        "_core/library.py",
        "return self.where(rows[:, None] == start + columns,",
        "return self.where(rows[:, None] == start + columns + 1,",
    ),
    Fault(
        "diagonal of every block of C taken for that of the first",
        "_core/library.py",
        "return self.where(rows[:, None] == start + columns,",
        "return self.where(rows[:, None] == columns,",
        ("vcreg",),
    ),
    Fault(
        "diagonal not taken from the Gram route's value",
        "_core/terms/covariance/gram.py",
        "value = self.whole - xp.where(",
        "value = self.whole - 0 * xp.where(",
    ),
    Fault(
        "sign of the Gram route's diagonal in the gradient",
        "_core/terms/covariance/gram.py",
        "row = -of_features(factor)",
        "row = of_features(factor)",
    ),
    Fault(
        "kept-apart features' squares subtracted too",
        "_core/terms/covariance/gram.py",
        "diagonal = apart.with_value(of_features(scale) * samples.energies, 0.0)",
        "diagonal = of_features(scale) * samples.energies",
        ("paths",),
    ),
    Fault(
        "pairs with one kept-apart feature counted once",
        "_core/terms/covariance/gram.py",
        "xp.full_like(diagonal, 2.0), 1.0)",
        "xp.full_like(diagonal, 1.0), 1.0)",
        ("paths",),
    ),
    Fault(
        "kept-apart features not put back after K",
        "_core/largest.py",
        "self._xp.put_along_axis(array, places, columns)",
        "self._xp.put_along_axis(array, places, 0.0)",
        tests=("paths",),
    ),
    Fault(
        "PyTorch's factor of a product that is added",
        "_adapters/torch/library.py",
        "*operands, alpha=factor",
        "*operands, alpha=abs(factor) / 2",
        tests=("paths",),
    ),
    Fault(
        "PyTorch's diagonal of a block of C on its wrong side",
        "_adapters/torch/library.py",
        "array.diagonal(-start, -2, -1)",
        "array.diagonal(start, -2, -1)",
        tests=("vcreg",),
    ),
    Fault(
        "PyTorch's norm on a device not squared",
        "_adapters/torch/library.py",
        "return _squared(torch.linalg.vector_norm(array, dim=-2))",
        "return torch.linalg.vector_norm(array, dim=-2)",
        tests=("paths",),
    ),
    Fault(
        "NumPy's diagonal of a block of C that of the first",
        "_adapters/standard.py",
        "array[..., on_it, on_it - start] = 0.0",
        "array[..., on_it - start, on_it - start] = 0.0",
        tests=("vcreg",),
    ),
    Fault(
        "kept-apart features left out of the gradient",
        "_core/terms/covariance/gram.py",
        "products.append(Product(a, m, factor, is_thin=True))",
        "products.append(Product(a, 0.0 * m, factor, is_thin=True))",
        ("paths",),
    ),
    Fault(
        "kept-apart features' products with themselves counted",
        "_core/terms/covariance/gram.py",
        "m = apart.with_own_cleared(xp.scaled_product(xp.matrix_transpose(a), zc, scale))",
        "m = xp.scaled_product(xp.matrix_transpose(a), zc, scale)",
        ("paths",),
    ),
    Fault(
        "equal features found at one place",
        "_core/largest.py",
        "place_equal = place_above[..., -1:] + xp.cumulative_sum(equal, axis=-1)",
        "place_equal = place_above + xp.cumulative_sum(equal, axis=-1)",
    ),
    Fault(
        "the smallest features kept apart",
        "_adapters/standard.py",
        "axis=-1)[..., -k:]",
        "axis=-1)[..., :k]",
        ("accuracy",),
    ),
    Fault(
        "half the gradient of the covariance",
        "_core/terms/covariance/gram.py",
        "factor = 4.0 * self.scale * cotangent",
        "factor = 2.0 * self.scale * cotangent",
    ),
    # Large views.
    Fault(
        "a strip's mirror image from the wrong columns",
        "_core/samples.py",
        "[..., start - edges[above] : end - edges[above]]",
        "[..., : end - start]",
        ("paths",),
    ),
    Fault(
        "a difference that cancels taken for right",
        "_core/terms/covariance/gram.py",
        "return xp.any(xp.logical_or(small, xp.isinf(self.own)))",
        "return xp.any(xp.isinf(self.own))",
        ("accuracy",),
    ),
    Fault(
        "the definition never taken, however much cancels",
        "_core/terms/covariance/gram.py",
        "                if parts.cancel(xp, sizes):\n                    return",
        "                if False:\n                    return",
        ("hard_input",),
    ),
    Fault(
        "NumPy's numbers added one after another",
        "_adapters/standard.py",
        "    blocks_of_samples = True\n    sums_whole_pairwise = True",
        "    blocks_of_samples = True",
        ("hard_input",),
    ),
    Fault(
        "the last columns of the definition left out",
        "_core/terms/covariance/gram.py",
        "for start in range(0, samples.features, sizes.columns)",
        "for start in range(0, samples.features - sizes.columns, sizes.columns)",
        ("accuracy", "paths"),
    ),
    Fault(
        "the first columns of the definition left out in JAX",
        "_adapters/jax.py",
        "jnp.where(wanted, jnp.int32(0), jnp.int32(d))",
        "jnp.where(wanted, jnp.int32(length), jnp.int32(d))",
        ("accuracy", "paths"),
    ),
    Fault(
        "the last squares of a large view left out",
        "_core/samples.py",
        "for start in range(0, rows, size)",
        "for start in range(0, rows - size, size)",
        ("paths",),
    ),
    Fault(
        "the means of Dask's chunks taken for one",
        "_core/chunks.py",
        "chunk.products for chunk in chunks) + of_means",
        "chunk.products for chunk in chunks) + 0 * of_means",
        ("libraries", "definition"),
    ),
    Fault(
        "Dask's chunks kept from one pass to the next",
        "_adapters/dask_passes.py",
        "if not known:",
        "if len(known):",
        ("dask",),
    ),
    Fault(
        "a pass over Dask's chunks that does not wait for what it needs",
        "_adapters/dask_passes.py",
        "return copy if is_after else",
        "return copy if node.dependencies is not None else",
        ("dask",),
    ),
    Fault(
        "a term's gradient lost where only it is wanted of a large view",
        "_core/terms/invariance.py",
        "gradients[place] = change if gradient is None else add(gradient, change)",
        "gradients[place] = None if gradient is None else add(gradient, change)",
        ("paths",),
    ),
    Fault(
        "the last run of a long sum left out",
        "_core/sums.py",
        "return total if whole == n else total + summed(array[..., whole:, :])",
        "return total",
        ("paths", "accuracy"),
    ),
    Fault(
        "long sums in one go",
        "_core/sums.py",
        "if xp.sums_pairwise or n < 2 * run:",
        "if True:",
        ("accuracy",),
    ),
    Fault(
        "features kept apart though the samples tell fewer directions",
        "_core/terms/covariance/gram.py",
        "return min(count, most)",
        "return count",
        ("accuracy",),
    ),
    # Smooth L1.
    Fault(
        "only the last block in the smooth L1's value",
        "_core/terms/covariance/smooth_l1.py",
        "before = total = total + self._value(",
        "before = total = self._value(",
        ("vcreg",),
    ),
    Fault(
        "smooth L1 with half its linear part",
        "_core/terms/covariance/smooth_l1.py",
        "memory.multiply(xp, o, 2.0), t)",
        "memory.multiply(xp, o, 1.0), t)",
        ("vcreg",),
    ),
    Fault(
        "smooth L1's limit divided by the number of samples too",
        "_core/objective.py",
        "self.delta * root, self.sizes",
        "self.delta * root / divisor, self.sizes",
        ("vcreg",),
    ),
    Fault(
        "smooth L1's blocks of the gradient in reverse",
        "_core/terms/covariance/smooth_l1.py",
        "xp.concat(products, axis=-1)",
        "xp.concat(products[::-1], axis=-1)",
        ("vcreg",),
    ),
    # Layout, dtypes and the terms together.
    Fault(
        "positions taken for samples",
        "_core/layout.py",
        "samples = others if self.pooled else others[:1]",
        "samples = others",
    ),
    Fault(
        "the features on the first of their axes alone",
        "_core/layout.py",
        "features = tuple(axis % ndim for axis in self.features)",
        "features = tuple(axis % ndim for axis in self.features[:1])",
        ("axes",),
    ),
    Fault(
        "gradients turned back by the same permutation",
        "_core/layout.py",
        "back = tuple(sorted(range(view.ndim), key=order.__getitem__))",
        "back = order",
    ),
    Fault(
        "gradients left in the dtype of the computation",
        "_core/layout.py",
        "return gradient if gradient.dtype == view.dtype else xp.astype(gradient, view.dtype)",
        "return gradient",
    ),
    Fault(
        "half precision computed in itself",
        "_core/layout.py",
        "return xp.astype(array, xp.float32) if dtype_name(array) in HALF_PRECISION else array",
        "return array",
    ),
    Fault(
        "a term's coefficient left out of its value",
        "_core/terms/variance.py",
        "return self.coefficient * sums.everything(xp, hinge,",
        "return sums.everything(xp, hinge,",
    ),
    Fault(
        "the second view's gradient of the invariance with the first's sign",
        "_core/terms/invariance.py",
        "gradients[place] = -change if gradient is None else subtract(gradient, change)",
        "gradients[place] = change if gradient is None else add(gradient, change)",
    ),
    Fault(
        "the first view's factors for every view that is wanted alone",
        "_core/engine.py",
        "tuple(array[place, ...] for array in of)",
        "tuple(array[0, ...] for array in of)",
        DERIVATIVES,
    ),
    Fault(
        "the change of one term for another's",
        "_core/engine.py",
        "cotangents = [1.0 if other == place else None for other in range(len(terms))]",
        "cotangents = [1.0 if other == 3 % (place + 1) else None for other in range(len(terms))]",
        DERIVATIVES,
    ),
    Fault(
        "a weight of a term for another's",
        "_core/engine.py",
        "    dtype = computing_dtype(xp, views[0])",
        "    weights, dtype = weights[::-1], computing_dtype(xp, views[0])",
        DERIVATIVES,
    ),
    Fault(
        "a feature dead that varies by few units in the last place",
        "_core/collapse.py",
        "dead = reach == 0  # never",
        "dead = reach <= 2 * epsilon * size  # never",
        ("diagnose",),
    ),
    Fault(
        "what departs on simple arrays alone is said",
        "tools/identification/confirm.py",
        "if finding.as_measured or not said:",
        "if True:",
        ("identify",),
    ),
    Fault(
        "stds of a diagnosis divided by n",
        "_core/collapse.py",
        "_root(xp, count.samples - 1)",
        "_root(xp, count.samples)",
        ("diagnose",),
    ),
    Fault(
        "absent samples are 0 in a diagnosis",
        "_core/collapse.py",
        "z = xp.where(weights.is_present, z, heaviest)",
        "z = xp.where(weights.is_present, z, 0 * heaviest)",
        ("diagnose",),
    ),
    Fault(
        "what stands under a weight of 0 stays",
        "_core/sample_weights.py",
        "return array if self._all_present else self._xp.kept(array, self._has_part)",
        "return array",
        ("sample_weight",),
    ),
    Fault(
        "weights count in the mean as one each",
        "_core/sample_weights.py",
        "lambda: self._in_statistics(self.each / self.number)",
        "lambda: self._in_statistics(self._xp.ones_like(self.each) / self.number)",
        ("sample_weight",),
    ),
    Fault(
        "a position with one sample has statistics",
        "_core/sample_weights.py",
        "self._has_statistics = xp.logical_not(total <= least)",
        "self._has_statistics = xp.logical_not(total <= 0 * least)",
        ("sample_weight",),
    ),
    Fault(
        "averages over positions without statistics too",
        "_core/sample_weights.py",
        "positions = sums.everything(xp, is_counted, run)",
        "positions = sums.everything(xp, xp.ones_like(is_counted), run)",
        ("sample_weight",),
    ),
    Fault(
        "the first sample that counts is subtracted, whatever its weight",
        "_core/sample_weights.py",
        "lambda: xp.argmax(each, axis=-2, keepdims=True)",
        "lambda: xp.argmax(xp.astype(each > 0, each.dtype), axis=-2, keepdims=True)",
        ("sample_weight",),
    ),
    Fault(
        "the first sample is counted from though it is absent",
        "_core/sample_weights.py",
        "places = xp.where(has_largest, rows, xp.full_like(rows, n))",
        "places = rows",
        ("sample_weight",),
    ),
    Fault(
        "a gradient without the roots of its samples' weights",
        "_core/engine.py",
        "return None if gradient is None else samples.in_statistics(gradient)",
        "return gradient",
        ("sample_weight",),
    ),
    Fault(
        "the invariance's gradient without the weights",
        "_core/terms/invariance.py",
        "factor = views[0].of_each(2.0 * self.coefficient * cotangent)",
        "factor = 2.0 * self.coefficient * cotangent",
        ("sample_weight",),
    ),
    Fault(
        "the invariance's value without the weights",
        "_core/library.py",
        "memory.multiply(self, array * array, weights)",
        "array * array",
        ("sample_weight",),
    ),
    Fault(
        "samples of weight 0 are one more array of zeros",
        "_core/library.py",
        "return self.where(where, array, self.zeros_like(array[..., :1, :1]))",
        "return self.where(where, array, self.zeros_like(array))",
        ("torch_modes",),
    ),
    Fault(
        "what a gradient of weighted samples is differentiated with may be NaN",
        "_core/engine.py",
        "if samples.weights is None or samples.xp.updates_in_place:",
        "if samples.weights is not None or samples.xp.updates_in_place:",
        ("sample_weight",),
    ),
    Fault(
        "a derivative by the weights of samples is 0 in MLX",
        "_adapters/mlx.py",
        "return (*views, constant(weight))",
        "return (*views, mx.stop_gradient(weight))",
        ("sample_weight",),
    ),
    Fault(
        "weights below 0 and NaN give numbers",
        "_core/sample_weights.py",
        "each = xp.where(each >= 0, each, xp.full_like(each, math.nan))",
        "each = xp.where(each >= 0, each, xp.zeros_like(each))",
        ("sample_weight",),
    ),
    Fault(
        "weights may be infinite in the dtype of the computation",
        "_core/sample_weights.py",
        "right = xp.logical_and(right, weight <= largest)",
        "right = xp.logical_and(right, weight <= math.inf)",
        ("bad_input",),
    ),
    Fault(
        "a sum of weights that is 1 but for rounding has statistics",
        "_core/sample_weights.py",
        "least = correction * (1.0 + _ROUNDINGS * float(xp.finfo(total.dtype).eps))",
        "least = correction",
        ("sample_weight",),
    ),
    Fault(
        "samples times their weights are formed whole",
        "_core/samples.py",
        "for rows, factor in self.blocks(array, factors)",
        "for rows, factor in [(array, factors)]",
        ("torch_modes",),
    ),
    Fault(
        "the weights of the ranks' samples are those of this rank",
        "_core/ranks.py",
        "shares = [totals[rank] / safe for rank in range(comm.size)]",
        "shares = [total / total / comm.size for rank in range(comm.size)]",
        ("sample_weight",),
    ),
    Fault(
        "matches of VICRegL in the order of their distance",
        "_core/matching.py",
        "kept = xp.sort(kept, axis=-1)",
        "pass",
        ("vicregl",),
    ),
    Fault(
        "the matches of VICRegL that are farthest are kept",
        "_core/matching.py",
        "xp.argsort(xp.min(distances, axis=-1), axis=-1)",
        "xp.argsort(-xp.min(distances, axis=-1), axis=-1)",
        ("vicregl",),
    ),
    Fault(
        "each place of VICRegL with the farthest of the other map",
        "_core/matching.py",
        "match = xp.argmin(distances, axis=-1)",
        "match = xp.argmin(-distances, axis=-1)",
        ("vicregl",),
    ),
    Fault(
        "one map of VICRegL counted from the mean",
        "_core/matching.py",
        "features, others = features - centre, others - centre",
        "features, others = features - centre, others",
        ("vicregl",),
    ),
    Fault(
        "both directions of VICRegL match the same way",
        "_core/local.py",
        "distances = xp.matrix_transpose(distances)",
        "distances = distances",
        ("vicregl",),
    ),
    Fault(
        "VICRegL's directions added, not averaged",
        "_core/local.py",
        "kept, 1.0 / ways)",
        "kept, 1.0)",
        ("vicregl",),
    ),
    Fault(
        "a pair of global views counts once",
        "_core/local.py",
        "tuple(settings.pairs(views))",
        "tuple({(min(pair), max(pair)): 0 for pair in settings.pairs(views)})",
        ("vicregl",),
    ),
    Fault(
        "lightly's order left out where all matches are kept",
        "_core/matching.py",
        'if count == places and match_order == "place":',
        "if count == places:",
        ("vicregl",),
    ),
    Fault(
        "the cosine of features without their length",
        "_core/matching.py",
        "return features / xp.where(length == 0, xp.ones_like(length), length)",
        "return features",
        ("vicregl",),
    ),
    Fault(
        "statistics of all matches of several pairs of maps together",
        "_core/local.py",
        'if settings.statistics == "place" else 0',
        "",
        ("vicregl",),
    ),
    Fault(
        "matches of VICRegL joined beyond the places of a map",
        "_core/local.py",
        "(len(group) + 1) * matched.kept > most",
        "len(group) * matched.kept > most",
        ("vicregl",),
    ),
    Fault(
        "matches of several pairs count as those of one",
        "_core/local.py",
        "share * len(group) / pairs",
        "share / pairs",
        ("vicregl",),
    ),
    Fault(
        "any number may be the weight of a sample",
        "_core/sample_weights.py",
        "right = weight >= 0",
        "right = weight == weight",
        ("bad_input",),
    ),
    Fault(
        "a diagnosis counts each feature's correlation with itself",
        "_core/collapse.py",
        "later = feature[start:] > feature",
        "later = feature[start:] >= feature",
        ("diagnose",),
    ),
    # Adapters.
    Fault(
        "PyTorch's backward pass forgets the incoming gradient",
        "_adapters/torch/autograd.py",
        "gradient = memory.multiply(xp, gradient, cotangent)",
        "gradient = memory.multiply(xp, gradient, 1.0)",
        ("torch",),
    ),
    Fault(
        "PyTorch's forward mode along the wrong view",
        "_adapters/torch/autograd.py",
        "engine.pushforward(recorded, views, saved, tangents, ctx.objective)",
        "engine.pushforward(recorded, views, saved, tangents[::-1], ctx.objective)",
        ("torch",),
    ),
    Fault(
        "PyTorch's second derivative by a cotangent left out",
        "_adapters/torch/autograd.py",
        "return (None, *vjp(cotangents), *(None for _ in range(ctx.saved)))",
        "return (None, *(2 * g for g in vjp(cotangents)), *(None for _ in range(ctx.saved)))",
        ("torch",),
    ),
    Fault(
        "VCReg's layer adds the incoming gradient twice",
        "_adapters/torch/layer.py",
        "total = memory.add(xp, own, incoming)",
        "total = memory.add(xp, own, 2 * incoming)",
        ("vcreg_layer",),
    ),
    Fault(
        "the published scale of VCReg's gradient divides",
        "_core/objective.py",
        "covariance * divisor",
        "covariance / divisor",
        ("vcreg_layer", "vcreg_jax"),
    ),
    Fault(
        "the compiler's own choice of what is sent on a mesh of JAX",
        "_adapters/jax.py",
        "jax.lax.with_sharding_constraint(array, sharding)[None, ...]",
        "array[None, ...]",
        ("jax_mesh",),
    ),
    Fault(
        "JAX's layer without the incoming gradient",
        "_adapters/jax.py",
        "(incoming + own, *no_gradient[0])",
        "(own, *no_gradient[0])",
        ("vcreg_jax",),
    ),
    Fault(
        "JAX's products in fewer bits",
        "_adapters/jax.py",
        'jax.default_matmul_precision("highest")',
        'jax.default_matmul_precision("default")',
        ("jax",),
    ),
    Fault(
        "a program exported for one size alone",
        "_adapters/torch/autograd.py",
        "objective = replace(objective, sizes=_ONE_WAY)",
        "objective = replace(objective)",
        ("torch_modes",),
    ),
    Fault(
        "a gradient formed under torch.no_grad",
        "_adapters/torch/autograd.py",
        "return torch.is_grad_enabled() and any(",
        "return any(",
        ("torch_modes",),
    ),
    Fault(
        "PyTorch's batches of cotangents taken for arrays",
        "_adapters/torch/library.py",
        "    return are_batched(tensors)",
        "    return False",
        ("torch_modes",),
    ),
    Fault(
        "a distributed tensor's parts taken for the whole",
        "_checks.py",
        "if partition is not None:\n        raise ValueError(\n",
        "if False:\n        raise ValueError(\n",
        ("torch_modes",),
    ),
    Fault(
        "JAX's meshes of explicit axes forgotten",
        "_adapters/jax.py",
        "if AxisType.Explicit not in mesh.axis_types or not any(map(_is_sharded, like)):",
        "if True:",
        ("jax_mesh",),
    ),
    Fault(
        "rows broadcast only as JAX is set to let them",
        "_adapters/jax.py",
        ', jax.numpy_rank_promotion("allow")',
        "",
        ("jax_settings",),
    ),
    Fault(
        "JAX's derivative by one view takes every view's",
        "_adapters/jax.py",
        "engine.pushforward(xp, views, saved, moving, batch)",
        "engine.pushforward(xp, views, saved, moving[::-1], batch)",
        ("jax",),
    ),
    Fault(
        "MLX's forward mode along the wrong view",
        "_adapters/mlx.py",
        "engine.pushforward(xp, views, saved, _as_tuple(tangents), objective)",
        "engine.pushforward(xp, views, saved, _as_tuple(tangents)[::-1], objective)",
        ("mlx",),
    ),
    Fault(
        "MLX's second derivative doubled",
        "_adapters/mlx.py",
        "return (*changes, *(mx.zeros_like(array) for array in primals",
        "return (*(2 * one for one in changes), *(mx.zeros_like(array) for array in primals",
        ("mlx",),
    ),
    # Conventions and what is refused.
    Fault(
        "d(d - 1) is d²",
        "_conventions.py",
        'pairs = d if convention.covariance_divisor == "d" else d * (d - 1)',
        'pairs = d if convention.covariance_divisor == "d" else d * d',
        ("definition", "vcreg"),
    ),
    Fault(
        "EB-JEPA's variance averaged over the views",
        "_conventions.py",
        'VICRegLoss",\n        variance_over_views="sum",',
        'VICRegLoss",\n        variance_over_views="mean",',
        ("published",),
    ),
    Fault(
        "TensorFlow GNN's covariance divided by n - 1",
        "_conventions.py",
        'covariance_correction=0,\n        variance_over_views="sum",',
        'covariance_correction=1,\n        variance_over_views="sum",',
        ("published",),
    ),
    Fault(
        "codebases' names in one spelling alone",
        "_conventions.py",
        'return name.lower().replace("_", "-")',
        "return name",
        ("conventions",),
    ),
    Fault(
        "VCReg's eps is VICReg's",
        "_conventions.py",
        "VCREG_EPS = 1e-5",
        "VCREG_EPS = 1e-4",
        ("definition", "vcreg"),
    ),
    Fault(
        "a sum over views is twice the mean of one view alone",
        "_conventions.py",
        'return 2.0 / views if combination == "sum" and views > 1 else 1.0 / views',
        'return 1.0 if combination == "sum" else 1.0 / views',
        ("definition",),
    ),
    Fault(
        "weights translated the other way",
        "_conventions.py",
        "tuple(w * (a / b) if w and a",
        "tuple(w * (b / a) if w and a",
        ("conventions",),
    ),
    Fault(
        "what the variance's correction is not compared",
        "_conventions.py",
        'or _difference(source, target, "variance_correction", "the variance\'s correction is")',
        "",
        ("conventions",),
    ),
    Fault(
        "views of different dtypes taken",
        "_checks.py",
        "if view.dtype != first.dtype:",
        "if False:",
        ("bad_input",),
    ),
    Fault(
        "negative weights taken",
        "_conventions.py",
        "if not 0 <= number < math.inf or",
        "if not -math.inf < number < math.inf or",
        ("bad_input",),
    ),
    Fault(
        "samples not counted against the correction",
        "_conventions.py",
        "return 1 + max(1, convention.variance_correction, convention.covariance_correction)",
        "return 2",
        ("bad_input",),
    ),
    Fault(
        "rows of a matrix taken for an array's",
        "_adapters/dispatch.py",
        'if "matrix" in names:',
        'if "matrices" in names:',
        ("bad_input",),
    ),
    # Ranks.
    Fault(
        "the mean of the ranks' means, whatever their rows",
        "_core/ranks.py",
        "[count / sum(counts) for count in counts]",
        "[1 / len(counts) for count in counts]",
        ("ranks",),
    ),
    Fault(
        "a rank's own products taken for those of all",
        "_core/ranks.py",
        "return self._comm.all_reduce(super().centred_products(scale))",
        "return super().centred_products(scale)",
        ("ranks",),
    ),
    Fault(
        "a rank's own rows of K taken for all of them",
        "_core/ranks.py",
        "return self._comm.all_reduce(super().squares_of_each_set(array))",
        "return super().squares_of_each_set(array)",
        ("ranks",),
    ),
    Fault(
        "features that are kept apart taken twice for a rank's own rows",
        "_core/ranks.py",
        "return features.columns(self.centred)",
        "return 2.0 * features.columns(self.centred)",
        ("ranks",),
    ),
    Fault(
        "the covariances of one rank's rows where the difference cancels",
        "_core/terms/covariance/gram.py",
        "xp, zc, sizes = samples.xp, samples.everyone.centred, self.sizes\n        values",
        "xp, zc, sizes = samples.xp, samples.centred, self.sizes\n        values",
        ("ranks",),
    ),
    Fault(
        "the samples of one rank counted",
        "_core/ranks.py",
        "return sum(self.counts)",
        "return self.counts[0]",
        ("ranks",),
    ),
    Fault(
        "own rows from their own first one, the mean from the first of all",
        "_core/ranks.py",
        "self.z - self._everyone.shift",
        "self.z - self.shift",
        ("ranks",),
    ),
    Fault(
        "a sum sent around the ring once",
        "_core/plan.py",
        "in_parts = 2 * (ranks - 1)",
        "in_parts = (ranks - 1)",
        ("plan",),
    ),
    Fault(
        "the products planned for the mean of the ranks' rows",
        "_core/plan.py",
        "multiply_adds = 2 * most * d * d",
        "multiply_adds = 2 * sum(counts) * d * d // ranks",
        ("plan",),
    ),
    Fault(
        "the dearer route",
        "_core/plan.py",
        "return min(_ROUTES",
        "return max(_ROUTES",
        ("plan",),
    ),
    Fault(
        "rows that fill a rank's share up taken for samples",
        "_core/ranks.py",
        "received[rank][..., :n, :] for rank",
        "received[rank][..., : max(counts), :] for rank",
        ("ranks",),
    ),
    Fault(
        "ranks that differ go on",
        "_core/agreement.py",
        "if len({*zip(forms, sums, strict=True)}) > 1:",
        "if len({*forms}) > 1:",
        ("ranks",),
    ),
    Fault(
        "ranks exchange what they know in each call",
        "_core/agreement.py",
        "expected = self._last and self._next.get(self._last, self._last)",
        "expected = None",
        ("ranks",),
    ),
    Fault(
        "the mean over ranks of a gradient of one",
        "_adapters/torch/communicator.py",
        "return len(objective.batch.counts) * cotangent",
        "return cotangent",
        ("ranks", "ranks_torch"),
    ),
    Fault(
        "one warning for each call without a communicator",
        "_adapters/torch/communicator.py",
        "        _warned = True\n",
        "",
        ("ranks_torch",),
    ),
    Fault(
        "a value counted once for each device",
        "_adapters/jax.py",
        "return _where(objective.comm.rank == 0, values)",
        "return _where(objective.comm.rank >= 0, values)",
        ("ranks_jax",),
    ),
    # What a call costs.
    Fault(
        "views counted as operations",
        "tools/benchmark/counting/torch.py",
        "if not (name in _ALLOCATE or _is_view(func)):",
        "if name not in _ALLOCATE:",
        ("bench_count",),
    ),
    Fault(
        "bytes counted for elements of one byte",
        "tools/benchmark/counting/counts.py",
        "return itemsize * math.prod(",
        "return math.prod(",
        ("bench_count",),
    ),
    Fault(
        "an array that is updated in place counted as written alone",
        "tools/benchmark/counting/standard.py",
        "self._add(name, given, [out])",
        "self._add(name, [], [out])",
        ("bench_count",),
    ),
    Fault(
        "launches added to the work of the GPU",
        "tools/benchmark/counting/estimate.py",
        "max(self.launches, self.on_gpu)",
        "self.launches + self.on_gpu",
        ("bench_count",),
    ),
    Fault(
        "the memory of views counted as allocated",
        "tools/benchmark/counting/torch.py",
        "if storage._cdata not in known:",
        "if True:",
        ("bench_count",),
    ),
    Fault(
        "what is freed counted as alive",
        "tools/benchmark/counting/counts.py",
        "[one for one in self._allocated if not one[0]()]",
        "list(self._allocated)",
        ("bench_count",),
    ),
    Fault(
        "what is saved of a view kept while the next is worked on",
        "_core/engine.py",
        "saved = _forward(samples, terms, values, any(",
        "saved = values.kept = _forward(samples, terms, values, any(",
        ("bench_count",),
    ),
    Fault(
        "products of positions that are not fused",
        "_adapters/torch/library.py",
        "        if not products:\n",
        "        if not products or array.ndim > 3:\n",
        ("growth",),
    ),
    Fault(
        "the row of the first part for each part of a gradient",
        "_adapters/torch/library.py",
        "row if axis == -2 else row.narrow(-1, start, count)",
        "row if axis == -2 else row.narrow(-1, 0, count)",
        ("paths",),
    ),
    Fault(
        "a sum of outer products without the last",
        "_adapters/jax.py",
        "columns = range(left.shape[-1])",
        "columns = range(left.shape[-1] - 1)",
        ("paths",),
    ),
    Fault(
        "differences that a compiler fuses with the wrong sign",
        "_core/terms/invariance.py",
        "-factor * (views[b].z - views[a].z)",
        "factor * (views[b].z - views[a].z)",
        ("jax", "paths"),
    ),
    Fault(
        "what is between the views added to a copy of the gradients",
        "_core/engine.py",
        "yield views, list(block[k : 2 * k])",
        "yield views, [one * 1 for one in block[k : 2 * k]]",
        ("paths",),
    ),
    Fault(
        "one block of columns in a loop, whose product the compiler moves out of it",
        "_adapters/jax.py",
        "length = (d + 1) // 2",
        "length = d",
        ("accuracy",),
    ),
    Fault(
        "products of a loop counted",
        "tools/benchmark/counting/jax.py",
        'elif equation.primitive.name != "while":',
        "else:",
        ("bench_count",),
    ),
    # Trainings.
    Fault(
        "a training in processes that do not share their gradients",
        "tools/demo/trainers/torch.py",
        "both if wrap is None else wrap(both)",
        "both",
        ("ranks_torch",),
    ),
    Fault(
        "a training on NumPy's ranks that do not share their gradients",
        "tools/demo/trainers/standard.py",
        "if self._comm is not None:",
        "if False:",
        ("trajectories",),
    ),
    Fault(
        "the covariance's gradient a millionth too large, in a training",
        "_core/terms/covariance/gram.py",
        "factor = 4.0 * self.scale * cotangent",
        "factor = 4.000004 * self.scale * cotangent",
        ("trajectories",),
    ),
    # Properties.
    Fault(
        "a sample weighs the square of its weight",
        "_core/sample_weights.py",
        "lambda: self._in_statistics(self._xp.sqrt(self.each))",
        "lambda: self._in_statistics(self.each)",
        ("properties",),
    ),
    Fault(
        "a pair with one feature kept apart counted once, on the paths of large views",
        "_core/terms/covariance/gram.py",
        "memory.multiply(xp, m * m, twice[..., None, :])",
        "m * m",
        ("properties",),
    ),
    Fault(
        "gamma taken for 1 in the derivative of the hinge",
        "_core/terms/variance.py",
        "active = spread < self.gamma",
        "active = spread < 1.0",
        ("properties",),
    ),
    Fault(
        "a partial in JAX's adapter that Python 3.14 would bind",
        "_adapters/jax.py",
        "take_along_axis = staticmethod(",
        "take_along_axis = (",
        ("jax",),
    ),
    Fault(
        "values of weights asked for on a GPU",
        "_core/sample_weights.py",
        "or not xp.can_ask(weight):",
        "or False:",
        ("torch",),
    ),
    # What is used again.
    Fault(
        "stale: memory that is given away in each backward pass",
        "_adapters/torch/autograd.py",
        "formed, ctx.formed = ctx.formed, None",
        "formed = ctx.formed",
        ("stateful_torch",),
    ),
    Fault(
        "stale: terms of an activation that has changed since",
        "_adapters/torch/layer.py",
        "return z is not None and _version(z, *self._of_samples) == self._version",
        "return z is not None",
        ("stateful_torch",),
    ),
    Fault(
        "stale: the last terms are those of the first pass",
        "_adapters/torch/layer.py",
        "self.last.number <= passed.number",
        "self.last.number >= passed.number",
        ("stateful_torch",),
    ),
    Fault(
        "stale: the convention that a module was first called with",
        "torch.py",
        '"convention": self.convention,',
        '"convention": self.__dict__.setdefault("_first", self.convention),',
        ("stateful_torch",),
    ),
    Fault(
        "stale: an attached layer in the mode that it was made in",
        "torch.py",
        "self.layer.train(module.training)(",
        "self.layer(",
        ("stateful_torch",),
    ),
    Fault(
        "stale: what is centred in place is the caller's view",
        "_core/samples.py",
        "shifted = self.z - self.shift",
        "shifted = memory.subtract(self.xp, self.z, self.shift)",
        ("stateful",),
    ),
    Fault(
        "stale: ranks expect the library of the call before",
        "_core/agreement.py",
        "expected.library != xp.name",
        "False",
        ("stateful",),
    ),
    Fault(
        "a view that nothing depends on, gone back to",
        "_adapters/torch/autograd.py",
        "    if gradient is not None:\n        gradient = memory.multiply",
        "    if True:\n        gradient = memory.multiply",
        ("pairs",),
    ),
    Fault(
        "the axes of samples not multiplied",
        "_core/layout.py",
        "math.prod([shape[axis] for axis in samples])",
        "shape[samples[-1]]",
        ("properties",),
    ),
]


@dataclass(frozen=True)
class Outcome:
    """The result for one fault: the test that found it, or why there is none."""

    found_by: str | None
    said: str
    seconds: float


def planted(fault: Fault, folder: Path) -> str | None:
    """Plant `fault` in the copy of the package in `folder`; return why if that is impossible."""
    file = folder / PACKAGE / fault.file
    text = file.read_text()
    count = text.count(fault.old)
    if count != 1:
        return f"its text is {count} times in {fault.file}"
    file.write_text(text.replace(fault.old, fault.new))
    return None


def tried(fault: Fault) -> Outcome:
    """Plant `fault` in a copy, and run the tests."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE)
        reason = planted(fault, folder)
        if reason is not None:
            return Outcome(None, reason, 0.0)
        files = [f"tests/test_{test}.py" for test in fault.tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not long", "-rfE"]
        command += ["--tb=line", "-p", "no:cacheprovider", *files]
        paths = [str(folder / PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        ran = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
    seconds = time.monotonic() - begun
    test = re.search(r"^FAILED (\S+::.*?)(?: - .*)?$", ran.stdout, flags=re.M)
    if ran.returncode == 1 and test is not None:
        return Outcome(test[1].removeprefix("tests/"), "", seconds)
    if ran.returncode == 0:
        return Outcome(None, "every test passed", seconds)
    return Outcome(None, f"the tests did not run: {ran.stdout[-500:]}{ran.stderr[-500:]}", seconds)


def main() -> int:
    """Run the selected faults, print which test found each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of a fault's name")
    parser.add_argument("--list", action="store_true", help="list the faults and stop")
    given = parser.parse_args()
    faults = [fault for fault in FAULTS if all(word in fault.name for word in given.words)]
    if given.list or not faults:
        print(*(fault.name for fault in FAULTS), sep="\n")
        return not given.list
    # One process per processor, with one thread each.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, outcome in zip(faults, pool.map(tried, faults), strict=True):
            missed += outcome.found_by is None
            answer = outcome.found_by or f"NOT FOUND: {outcome.said}"
            print(
                f"{fault.name} ({fault.file}, {outcome.seconds:.0f} s)\n    {answer}", flush=True
            )
    print(f"{len(faults) - missed} of {len(faults)} faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
