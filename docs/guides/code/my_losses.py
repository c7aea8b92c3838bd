"""A VICReg of one's own, in three attempts that differ in the covariance term."""

import torch


def vicreg(z1, z2, covariance_of):
    """Return the loss of two tensors (n, d)."""
    invariance = torch.nn.functional.mse_loss(z1, z2)
    variance = (hinge(z1) + hinge(z2)) / 2
    covariance = covariance_of(z1) + covariance_of(z2)
    return 25 * invariance + 25 * variance + covariance


def hinge(z):
    """Return how far the standard deviations fall short of 1, on average."""
    return torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()


def first(z1, z2):
    """Take the covariances above the diagonal."""
    return vicreg(
        z1, z2, lambda z: z.T.cov().triu(diagonal=1).square().sum() / z.shape[1]
    )


def second(z1, z2):
    """Take all squares, and subtract those of the diagonal."""
    return vicreg(z1, z2, lambda z: all_minus_diagonal(z.T.cov()) / z.shape[1])


def all_minus_diagonal(c):
    """Return the sum of the squares off the diagonal, as a difference."""
    return c.square().sum() - c.diagonal().square().sum()


def third(z1, z2):
    """Set the diagonal to 0, then take all squares."""
    return vicreg(
        z1, z2, lambda z: without_diagonal(z.T.cov()).square().sum() / z.shape[1]
    )


def without_diagonal(c):
    """Return a matrix with a diagonal of 0."""
    return c - c.diagonal().diag()
