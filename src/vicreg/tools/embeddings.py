"""Read embeddings from a file. No code in it is ever run.

Each format has a reader here, which returns an array, or the arrays by name. What is wrong with
a file is said in one line.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from vicreg.tools.requirements import RequirementError, require

__all__ = ["SUFFIXES", "load"]

Array = Any
#: What a file holds: each array by its name, and what returns it.
Arrays = Mapping[str, Callable[[], Array]]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
#: How many names an error lists.
_LISTED = 10


def load(file: Path, key: str | None = None) -> Array:
    """Return the embeddings in a file.

    Parameters
    ----------
    file : path
        A file of one of `SUFFIXES`.
    key : str, optional
        The name of the array in the file; not needed if there is only one.

    Returns
    -------
    array, shape (n, d)
        A NumPy array of two samples or more; a PyTorch tensor where the values are bfloat16.

    Raises
    ------
    RequirementError
        The file cannot be read, holds no such array, or holds Python objects, which could run
        code; or a package to read it is missing.
    """
    name = repr(str(file))
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(SUFFIXES)
        raise RequirementError(f"cannot read {name}: its suffix must be one of {known}")
    try:
        kind = file.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe is read once, and a device ...
            raise RequirementError(f"cannot read {name}: it is no plain file")
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error is one line
            array = reader(opened, name, key)
    except RequirementError:
        raise
    except MemoryError as error:
        raise RequirementError(f"cannot read {name}: it does not fit into memory") from error
    except Exception as error:  # a library may raise anything for a broken file
        # EINVAL: a seek to a place that a damaged file does not have.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise RequirementError(f"cannot read {name}: {error.strerror}") from error
        if "pickl" in f"{type(error).__name__} {error}".lower():
            raise RequirementError(
                f"{name} holds Python objects, which are not loaded, or is damaged"
            ) from error
        raise RequirementError(f"{name} is damaged: {_first_line(error)}") from error
    return _checked(array, name)


def _read_npy(file: BinaryIO, name: str, key: str | None) -> Array:
    import numpy as np

    if not file.read(len(_MAGIC)) == _MAGIC:
        raise RequirementError(f"{name} is no .npy file: save the array by numpy.save")
    file.seek(0)
    _check_size(os.fstat(file.fileno()).st_size, name)
    return _chosen({"": lambda: np.load(file, allow_pickle=False)}, name, key)


def _read_npz(file: BinaryIO, name: str, key: str | None) -> Array:
    import numpy as np

    if not zipfile.is_zipfile(file):
        raise RequirementError(f"{name} is no .npz file: save the arrays by numpy.savez")
    with zipfile.ZipFile(file) as archive:

        def read(member: zipfile.ZipInfo) -> Array:
            _check_size(member.file_size, name)
            with archive.open(member) as opened:
                return np.lib.format.read_array(opened, allow_pickle=False)

        arrays = {
            member.filename.removesuffix(".npy"): partial(read, member)
            for member in archive.infolist()
            if member.filename.endswith(".npy")
        }
        return _chosen(arrays, name, key)


def _read_torch(file: BinaryIO, name: str, key: str | None) -> Array:
    require("torch")
    import torch

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _check_size(sum(member.file_size for member in archive.infolist()), name)
    file.seek(0)
    data = torch.load(file, map_location="cpu", weights_only=True)
    named = data if isinstance(data, Mapping) else {"": data}
    tensors = {str(k): value for k, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise RequirementError(f"{name} must hold a tensor or a dict of tensors")
    return _chosen({k: partial(_of_tensor, tensors[k], name) for k in tensors}, name, key)


def _read_safetensors(file: BinaryIO, name: str, key: str | None) -> Array:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise RequirementError(
            f"cannot read {name}: safetensors is not installed: pip install safetensors"
        ) from error

    with safe_open(file.name, framework="numpy") as opened:

        def read(key: str) -> Array:
            shape, dtype = opened.get_slice(key).get_shape(), opened.get_slice(key).get_dtype()
            _check_size(math.prod(shape) * _BYTES.get(dtype, 1), name)
            if not dtype.startswith(("BF", "F8")):
                return opened.get_tensor(key)
            require("torch")  # NumPy has no such numbers
            with safe_open(file.name, framework="pt") as tensors:
                return _of_tensor(tensors.get_tensor(key), name)

        return _chosen({k: partial(read, k) for k in opened.keys()}, name, key)  # noqa: SIM118


_MAGIC = b"\x93NUMPY"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of a number, by its name in safetensors
_READERS = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
#: The suffixes of the files that `load` reads.
SUFFIXES = tuple(_READERS)


def _chosen(arrays: Arrays, name: str, key: str | None) -> Array:
    """Return the array named `key`; the only one where `key` is None."""
    names = ", ".join(map(repr, list(arrays)[:_LISTED]))
    if len(arrays) > _LISTED:
        names += f" and {len(arrays) - _LISTED} more"
    if not arrays:
        raise RequirementError(f"{name} holds no array")
    if key is None and len(arrays) > 1:
        raise RequirementError(f"{name} holds {len(arrays)} arrays: choose by --key from {names}")
    if key is not None and "" in arrays and len(arrays) == 1:
        raise RequirementError(f"{name} holds one array without a name: leave out --key")
    if key is not None and key not in arrays:
        raise RequirementError(f"{name} holds no array {key!r}: --key must be one of {names}")
    return arrays[next(iter(arrays)) if key is None else key]()


def _of_tensor(tensor: Any, name: str) -> Array:
    """Return a tensor as NumPy has it; as it is, if its dtype is bfloat16."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RequirementError(f"{name} must hold a dense tensor")
    _check_size(tensor.numel() * tensor.element_size(), name)  # an expanded one is small on disk
    tensor = tensor.detach()
    has_numpys_dtype = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return tensor.numpy() if has_numpys_dtype else tensor


def _check_size(size: int, name: str) -> None:
    """Raise if so many bytes are no batch that could be diagnosed here."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        raise RequirementError(
            f"cannot read {name}: it does not fit into memory: {size / 2**30:.3g} of "
            f"{memory / 2**30:.3g} GiB"
        )


def _checked(array: Array, name: str) -> Array:
    """Return `array` in the byte order of this machine; raise if it holds no embeddings."""
    dtype, shape = str(array.dtype).removeprefix("torch."), tuple(array.shape)
    if getattr(array.dtype, "name", dtype) not in _DTYPES:
        raise RequirementError(
            f"{name} holds {dtype}: embeddings are {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}; "
            "convert them to float32 and save them again"
        )
    if len(shape) != 2 or 0 in shape:
        raise RequirementError(
            f"{name} must hold an array of two axes, samples and features; got shape {shape}"
        )
    if shape[0] < 2:
        raise RequirementError(f"{name} holds one sample: nothing can vary in fewer than two")
    _check_finite(array, name)
    return (
        array if dtype == "bfloat16" else array.astype(array.dtype.newbyteorder("="), copy=False)
    )


def _check_finite(array: Array, name: str) -> None:
    import numpy as np
    from array_api_compat import array_namespace

    bad = ~np.asarray(array_namespace(array).isfinite(array))
    if bad.any():
        rows = np.flatnonzero(bad.any(axis=1))
        raise RequirementError(
            f"{name}: {bad.sum()} of {bad.size} values are NaN or infinite, in {len(rows)} of "
            f"{len(bad)} samples (the first is sample {rows[0]}); nothing can be said of them"
        )


def _first_line(error: Exception) -> str:
    text = repr(error) if isinstance(error, KeyError) else str(error).strip()
    return (text or type(error).__name__).splitlines()[0]
