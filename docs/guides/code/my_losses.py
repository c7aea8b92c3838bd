"""A VICReg of one's own, with one mistake."""

import torch


def loss(z1, z2):
    invariance = torch.nn.functional.mse_loss(z1, z2)
    variance = (hinge(z1) + hinge(z2)) / 2
    covariance = off_diagonal(z1) + off_diagonal(z2)
    return 25 * invariance + 25 * variance + covariance


def hinge(z):
    std = torch.sqrt(z.var(dim=0) + 1e-4)
    return torch.relu(1 - std).mean()


def off_diagonal(z):
    n, d = z.shape
    z = z - z.mean(dim=0)
    cov = z.T @ z / (n - 1)
    upper = torch.triu(cov, diagonal=1)  # the mistake: each pair once, not twice
    return upper.square().sum() / d
