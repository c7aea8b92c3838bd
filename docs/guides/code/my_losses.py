"""A VICReg of one's own, in three attempts that differ in the covariance term."""

import torch


def vicreg(z1, z2, off_diagonal):
    """Return the loss of two tensors (n, d)."""
    invariance = torch.nn.functional.mse_loss(z1, z2)
    variance = (hinge(z1) + hinge(z2)) / 2
    covariance = off_diagonal(z1.T.cov()) + off_diagonal(z2.T.cov())
    return 25 * invariance + 25 * variance + covariance / z1.shape[1]


def hinge(z):
    """Return how far the standard deviations fall short of 1, on average."""
    return torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()


def first(z1, z2):
    """Take the covariances above the diagonal."""
    return vicreg(z1, z2, lambda c: c.triu(diagonal=1).square().sum())


def second(z1, z2):
    """Take all squares, and subtract those of the diagonal."""
    return vicreg(z1, z2, lambda c: c.square().sum() - c.diagonal().square().sum())


def third(z1, z2):
    """Set the diagonal to 0, then take all squares."""
    return vicreg(z1, z2, lambda c: (c - c.diagonal().diag()).square().sum())
