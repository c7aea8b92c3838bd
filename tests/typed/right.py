"""What users write, and what type checkers must make of it: test_types.py runs them on it."""

from typing import assert_type

import jax
import numpy as np
import numpy.typing as npt
import torch

import vicreg
from vicreg import VICRegTerms, conventions
from vicreg.distributed import LOCAL
from vicreg.torch import VCReg, VCRegTerms, VICRegLoss, attach_vcreg, cached_backward

Floats = npt.NDArray[np.float32]


def on_numpy(z1: Floats, z2: Floats) -> float:
    assert_type(vicreg.vicreg_value_and_grad(z1, z2), tuple[Floats, tuple[Floats, ...]])
    both, (grad1, _) = vicreg.vicreg_value_and_grad(z1, z2, terms=True)
    assert_type(both, VICRegTerms[Floats])
    either, _ = vicreg.vicreg_value_and_grad(z1, z2, terms=bool(grad1.any()))
    assert_type(either, Floats | VICRegTerms[Floats])
    assert_type(vicreg.variance_loss(z1, gamma=2), Floats)
    assert_type(vicreg.covariance_loss(z1, method="gram", feature_axis=(1, 2)), Floats)
    assert_type(vicreg.invariance_loss(z1, z2, convention="eb_jepa"), Floats)
    return float(vicreg.vicreg_loss(z1, z2, covariance_weight=np.float32(2)))


def on_jax(z1: jax.Array, z2: jax.Array) -> jax.Array:
    terms = assert_type(vicreg.vicreg_terms(z1, z2), VICRegTerms[jax.Array])
    assert_type(terms.loss, jax.Array)
    x = vicreg.jax.vcreg(z1, variance_weight=1.0, covariance_weight=0.1, scale=terms.loss)
    assert_type(vicreg.jax.vcreg_loss(x, variance_weight=1, covariance_weight=0), jax.Array)
    return vicreg.jax.vicreg_loss(x, z2, convention=conventions["vicregl"], comm=LOCAL)


def on_torch(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    assert_type(vicreg.vicreg_loss(z1, z2, z2, pairs=[(0, 1), (0, 2)]), torch.Tensor)
    criterion = VICRegLoss(convention="algorithm1", method="covariance", eps=None)
    assert_type(criterion(z1, z2), torch.Tensor)
    assert_type(criterion(z1, ref_emb=z2), torch.Tensor)
    terms = assert_type(criterion.terms(z1, z2), VICRegTerms[torch.Tensor])
    both = vicreg.torch.vcreg_value_and_grad(z1, variance_weight=1.0, covariance_weight=terms.loss)
    assert_type(both, tuple[torch.Tensor, torch.Tensor])
    layer = VCReg(variance_weight=1, covariance_weight=z1.std(), penalty="smooth_l1", delta=0.5)
    assert_type(layer(z1), torch.Tensor)
    assert_type(layer.last_terms, VCRegTerms)
    return vicreg.vicreg_loss(z1, z2, invariance_weight=z1.mean())


def on_a_model(model: torch.nn.Module, x: torch.Tensor) -> None:
    with attach_vcreg(
        model, ["1"], variance_weight=1.0, covariance_weight=0.1, covariance_gradient="published"
    ) as attached:
        assert_type(attached.layers["1"], VCReg)
    assert_type(cached_backward(model, (x, x), VICRegLoss(), chunk_size=4), torch.Tensor)
    assert_type(vicreg.VICRegLoss(), VICRegLoss)
