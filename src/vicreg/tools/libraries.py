"""The array libraries that the tools know: one list, from which every other is derived.

It imports nothing, so that a command can offer the libraries without loading them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIBRARIES", "NAMES", "Library", "names_where"]


@dataclass(frozen=True, kw_only=True)
class Library:
    """An array library.

    Parameters
    ----------
    title : str
        Its name as its authors write it.
    namespace : str
        The module that has its array functions.
    package : str
        What ``pip install`` takes.
    is_default : bool
        Whether ``vicreg verify`` and ``vicreg bench`` take it without ``--backend``.
    trains_demo : bool
        Whether ``vicreg demo`` can train on it.
    has_backend : bool
        Whether `vicreg.tools.backends` has a module for it. If not, it is used through the array
        API standard alone.
    """

    title: str
    namespace: str
    package: str
    is_default: bool = False
    trains_demo: bool = False
    has_backend: bool = True


#: By the name that ``--backend`` takes, which is also the package to import.
LIBRARIES = {
    "numpy": Library(
        title="NumPy", namespace="numpy", package="numpy", is_default=True, trains_demo=True
    ),
    "torch": Library(
        title="PyTorch", namespace="torch", package="torch", is_default=True, trains_demo=True
    ),
    "jax": Library(
        title="JAX", namespace="jax.numpy", package="jax", is_default=True, trains_demo=True
    ),
    "mlx": Library(title="MLX", namespace="mlx.core", package="'mlx[cpu]'", is_default=True),
    "cupy": Library(
        title="CuPy", namespace="cupy", package="cupy-cuda12x", is_default=True, trains_demo=True
    ),
    "dask": Library(title="Dask", namespace="dask.array", package="'dask[array]'"),
    "array_api_strict": Library(
        title="array-api-strict",
        namespace="array_api_strict",
        package="array-api-strict",
        has_backend=False,
    ),
    "ndonnx": Library(title="ndonnx", namespace="ndonnx", package="ndonnx onnxruntime"),
    "mparray": Library(title="mparray", namespace="mparray", package="mparray"),
}

NAMES = tuple(LIBRARIES)


def names_where(flag: str) -> tuple[str, ...]:
    """Return the names of the libraries whose field `flag` is true."""
    return tuple(name for name, library in LIBRARIES.items() if getattr(library, flag))
