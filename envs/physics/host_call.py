"""Calls from a program on a CPU into Python, through a handler of XLA's FFI.

JAX's own callbacks do as much, but a program with one of them is in no persistent
compilation cache: it names a Python object. Here it names a number, under which each
process registers the function. (And `pure_callback` may need a second thread of XLA's
pool for its arguments, which a process on one CPU does not have: it waits forever.)

The structures are those of `xla/ffi/api/c_api.h` (in `jax.ffi.include_dir()`), up to
the last field that is read here; XLA keeps their layout within a major version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

_TARGET = "iqmjx_host_call"
_MAJOR_VERSION = 0
_METADATA, _INTERNAL = 1, 13  # of an extension's types, and of the error codes
_DTYPES = {4: np.int32, 8: np.uint32, 11: np.float32}  # XLA_FFI_DataType
_functions: dict[int, Callable[..., Any]] = {}


def register(number: int, function: Callable[..., Any]) -> None:
    """Lets programs call a function, in place of one of before by this number.

    Args:
        number: under 2**63; programs in the compilation cache have it from another
            process, so it must stand for what the function does.
        function: of NumPy arrays, good while it runs; it returns arrays of the shapes
            and types that the program expects, or raises to end it.
    """
    _functions[number] = function


def call(number: int, outputs: Any, *inputs: ArrayLike) -> Any:
    """Calls a registered function in a program; under vmap once, with all of a batch.

    Args:
        number: the function's.
        outputs: a tree of the shapes and types of its results.
        inputs: its arguments.
    """
    shapes, tree = jax.tree.flatten(outputs)
    host_call = jax.ffi.ffi_call(_TARGET, shapes, vmap_method="broadcast_all")
    return tree.unflatten(host_call(*inputs, number=np.uint64(number)))


class _Extension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
    )


class _Struct(ctypes.Structure):
    """What most structures begin with."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
    )


class _Version(_Struct):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _MetadataExtension(_Extension):
    _fields_ = (("metadata", ctypes.POINTER(_Metadata)),)


class _Buffer(_Struct):
    _fields_ = (
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(_Struct):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("values", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Scalar(ctypes.Structure):
    _fields_ = (("dtype", ctypes.c_int), ("value", ctypes.POINTER(ctypes.c_uint64)))


class _Attributes(_Struct):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("values", ctypes.POINTER(ctypes.POINTER(_Scalar))),
    )


class _ErrorArguments(_Struct):
    _fields_ = (("message", ctypes.c_char_p), ("code", ctypes.c_int))


class _Api(_Struct):
    _fields_ = (
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))),
    )


class _Frame(_Struct):
    _fields_ = (
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
        ("attributes", _Attributes),
    )


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))
def _handler(pointer):
    """Answers XLA: first what version this is for, then each call.

    Returns NULL, or an error.
    """
    frame = pointer.contents
    try:
        if frame.extension and frame.extension.contents.type == _METADATA:
            _tell_version(frame)
        else:
            _call(frame)
    except Exception as error:  # of which XLA knows only the message
        message = f"{type(error).__name__}: {error}".encode()
        size = ctypes.sizeof(_ErrorArguments)
        told = _ErrorArguments(size, None, message, _INTERNAL)
        return frame.api.contents.error(ctypes.byref(told))
    return None


def _tell_version(frame: _Frame) -> None:
    running = frame.api.contents.version
    if running.major != _MAJOR_VERSION:
        raise RuntimeError(f"XLA's FFI has version {running.major}: is jax too new?")
    asked = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension))
    version = asked.contents.metadata.contents.version
    version.major, version.minor = running.major, running.minor


def _call(frame: _Frame) -> None:
    number = frame.attributes.values[0].contents.value.contents.value
    results = _functions[number](*map(_array, _each(frame.inputs)))
    for buffer, result in zip(
        _each(frame.outputs), jax.tree.leaves(results), strict=True
    ):
        _array(buffer)[...] = result


def _each(buffers: _Buffers) -> list[_Buffer]:
    return [buffers.values[i].contents for i in range(buffers.size)]


def _array(buffer: _Buffer) -> np.ndarray:
    """XLA's memory."""
    shape = tuple(buffer.dims[: buffer.rank])
    dtype = np.dtype(_DTYPES[buffer.dtype])
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory = (ctypes.c_char * size).from_address(buffer.data)
    return np.frombuffer(memory, dtype).reshape(shape)


def _capsule() -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.cast(_handler, ctypes.c_void_p), None, None)


jax.ffi.register_ffi_target(_TARGET, _capsule(), platform="cpu")
