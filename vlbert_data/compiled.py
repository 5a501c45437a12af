"""Loops that are compiled. Promise: they run at the speed of C, and other threads run meanwhile.

For arithmetic over many short runs, where numpy would go through memory once for each operation, and for calls of the
C library by the thousand. Numba compiles a loop at its first call, in about half a second, and keeps the result on
disk for the next process. A kept loop is made again when its own file has changed, not when another one has: so a loop
calls no compiled function of another module.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Division by zero gives what it gives in numpy.
OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """Return the loop, to be compiled at its first call for the types it is called with; it frees Python's lock.

    It is kept beside its module, or under the user's cache folder. Where neither can be written, each process compiles
    it anew.
    """
    with contextlib.suppress(RuntimeError):
        return cast(Loop, numba.njit(cache=True, **OPTIONS)(loop))
    return cast(Loop, numba.njit(**OPTIONS)(loop))


def inlined(step: Loop) -> Loop:
    """Return a step that loops of the same module are compiled with, written out wherever they call it.

    For steps of a dozen instructions that are taken for each few bytes: a call of one may take longer than the step.
    """
    return cast(Loop, numba.njit(inline="always", **OPTIONS)(step))


# memmove(target, source, bytes) of the C library, addresses as integers; for use in compiled loops.
memmove: Any = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))


def _half_to_float(typing_context: Any, bits: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


def _float_to_half(typing_context: Any, number: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


def _prefetch(typing_context: Any, address: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        place, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place, number, number, number])
        called = builder.module.declare_intrinsic("llvm.prefetch", (place,), kind)
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(called, [builder.inttoptr(arguments[0], place), read, keep, data])

    return types.void(types.intp), generate


# For use in compiled loops: prefetch(address) begins to bring 64 bytes into the cache and does not wait for them.
prefetch: Any = intrinsic(_prefetch)

# For use in compiled loops, since numba itself has no float16 on CPUs. half_to_float(bits): the float32 that equals a
# float16 given by its uint16 bits. float_to_half(number): the bits of the float16 nearest to a float32, ties to even.
half_to_float: Any = intrinsic(_half_to_float)
float_to_half: Any = intrinsic(_float_to_half)
