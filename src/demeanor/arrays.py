"""Arrays of numpy's or torch's: what is computed in a model is torch's, what is computed for files is numpy's, and the algebra of both is written once.

Functions that both libraries have by one name, with the same arguments, are taken from `library`; the rest is here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias, TypeVar

import numpy as np

Array: TypeAlias = Any  # np.ndarray or torch.Tensor; both know @, mT, shape and slices
A = TypeVar("A", bound=Any)  # one of them, where what comes back is of the same library


def is_numpy(array: Array) -> bool:
    return isinstance(array, np.ndarray)


def library(array: Array) -> Any:
    """numpy or torch, whichever an array is of. torch takes numpy's names of arguments (axis, keepdims) too."""
    return np if is_numpy(array) else import_module("torch")


def dtype_name(array: Array) -> str:
    """The name that both libraries have for its dtype, such as float32."""
    return str(array.dtype).removeprefix("torch.")


def cast(array: A, dtype: str) -> A:
    """The same numbers in a dtype that is named as both libraries name it ("float64")."""
    return array.astype(dtype, copy=False) if is_numpy(array) else array.to(getattr(library(array), dtype))


def cast_like(array: A, like: A) -> A:
    """The same numbers in the dtype, and on the device, of another array of the same library."""
    return array.astype(like.dtype, copy=False) if is_numpy(array) else array.to(device=like.device, dtype=like.dtype)


def zeros(shape: tuple[int, ...], like: A) -> A:
    """Zeros in the dtype, and on the device, of another array."""
    return library(like).zeros(shape, dtype=like.dtype, device=like.device)


def all_finite(array: Array) -> bool:
    return bool(library(array).isfinite(array).all())


def in_numpy(array: Array) -> np.ndarray[Any, Any]:
    """An array of either library as numpy's: numbers of 16 bits become float32, which holds each of them."""
    if not is_numpy(array):
        array = array.detach().cpu()
        array = (array.float() if array.dtype.itemsize < 4 else array).numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array


def raw(array: Array) -> bytes:
    """The bytes of an array, row by row."""
    if is_numpy(array):
        return array.tobytes()
    return array.detach().cpu().contiguous().flatten().view(library(array).uint8).numpy().tobytes()


def in_torch(array: Array) -> Array:
    """An array of either library as torch's."""
    return import_module("torch").as_tensor(array)
