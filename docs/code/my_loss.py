"""A loss as someone may have written it: conventions.md asks what it is."""

import torch


def my_loss(z1, z2):
    """Return the VICReg loss of two views."""
    invariance = torch.nn.functional.mse_loss(z1, z2)
    variance = covariance = 0.0
    for z in (z1, z2):
        std = torch.sqrt(z.var(dim=0) + 1e-4)
        variance += torch.relu(1 - std).mean() / 2
        c = torch.cov(z.T)
        covariance += c.square().sum() / z.shape[1]
    return 25 * invariance + 25 * variance + covariance
