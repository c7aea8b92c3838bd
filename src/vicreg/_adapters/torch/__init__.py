"""PyTorch."""

from vicreg._adapters.torch import communicator
from vicreg._adapters.torch.autograd import apply, evaluate, value_and_grad
from vicreg._adapters.torch.library import (
    floats,
    is_differentiated,
    is_distributed,
    local,
    measure,
    register,
    replicated,
    rows,
    without_gradient,
    wrong_count,
)

__all__ = [
    "apply",
    "communicator",
    "evaluate",
    "floats",
    "is_differentiated",
    "is_distributed",
    "local",
    "measure",
    "register",
    "replicated",
    "rows",
    "value_and_grad",
    "without_gradient",
    "wrong_count",
]
