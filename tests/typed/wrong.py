"""What type checkers must refuse: each of the lines marked as wrong, and no other."""

import jax
import torch

import vicreg
from vicreg import vicreg_los  # wrong
from vicreg.torch import VCReg, VICRegLoss, attach_vcreg


def misspelt(z1: torch.Tensor, z2: torch.Tensor, model: torch.nn.Module) -> None:
    vicreg.vicreg_loss(z1, z2, convention="offical")  # wrong
    vicreg.vicreg_terms(z1, z2, method="grams")  # wrong
    vicreg.variance_loss(z1, epsilon=1e-4)  # wrong
    vicreg.vcreg_loss(z1, variance_weight=1, covariance_weight=1, penalty="smooth")  # wrong
    VICRegLoss(convention="lightyl")  # wrong
    VCReg(variance_weight=1, covariance_weight=1, covariance_gradient="exakt")  # wrong
    attach_vcreg(model, "1", variance_weight=1, covariance_weight=1, penality="square")  # wrong
    vicreg.torch.vicreg_value_and_grad(z1, z2, covariance_weigth=1)  # wrong
    vicreg.translate_weights((25, 25, 1), "papper", "official", d=8)  # wrong
    vicreg.vicreg_loss(z1, z2, pairs=(0, 1))  # wrong
    vicreg.vicregl_loss([z1, z2], [z1, z2], None, match_order="nearest")  # wrong


def of_other_types(z1: torch.Tensor, z2: torch.Tensor, model: torch.nn.Module) -> None:
    vicreg.vicreg_loss([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]])  # wrong
    vicreg.vicreg_loss(z1, z2, variance_weight="25")  # wrong
    VICRegLoss()(z1, 3)  # wrong
    print(VICRegLoss()(z1, z2).losses)  # wrong
    print(VICRegLoss().terms(z1, z2).invariances)  # wrong
    attach_vcreg(model, "1", variance_weight=1)  # wrong
    loss: jax.Array = vicreg.vicreg_loss(z1, z2)  # wrong
    VCReg(variance_weight=1, covariance_weight=1)(loss)  # wrong
