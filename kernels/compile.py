"""Compile a Triton kernel for a chip that is not there, and read what became of it.

What the compiler makes of a kernel decides half of its speed: registers that spilled to memory,
matrix instructions that were not used. Both are read here from the machine code itself, by
`cuobjdump` from Triton's own package, so that a machine without a GPU can hold them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .jit import INTERPRETED, triton

CHIPS: Mapping[int, str] = {80: "A100", 90: "H100, H200", 100: "B200", 120: "RTX 50"}
"""The compute capabilities that kernels are compiled for in tests, and chips that have them."""

SHARED_LIMIT: Mapping[int, int] = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one block may have (CUDA programming guide, compute capabilities)."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One configuration that an op's launcher picks by default for shapes that count.

    `signature` has each parameter that is no constant: `"*bf16"`, `"i32"`, `"fp32"`; with `:16`
    behind it (`"*bf16:16"`) where the launcher sees to it that the address or number is a multiple
    of 16, as Triton finds out by itself at run time. `constants` has the `tl.constexpr` ones, and
    may have others (strides of 1, say). `sms` are the chips on which it is picked.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    sms: tuple[int, ...] = tuple(CHIPS)

    def compile(self, sm: int) -> Compiled:
        """For the chip `sm`, one of `sms`."""
        return compile_for(
            self.kernel,
            self.signature,
            self.constants,
            sm=sm,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.maxnreg,
        )


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a kernel became on a chip.

    `registers` and `stack_bytes` are of a thread, `shared_bytes` of a block; `warps` includes those
    that warp specialization adds; `cubin` is the machine code.
    """

    sm: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    warps: int
    cubin: bytes = field(repr=False)

    @cached_property
    def opcodes(self) -> Mapping[str, int]:
        """How many instructions there are by their full name: `LDG.E.128`."""
        # From lines such as `/*0a30*/  @!P0 LDG.E.128 R4, desc[UR6][R2.64] ;`.
        line = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
        return Counter(re.findall(line, _dumped(self.cubin, "-sass"), re.M))

    @property
    def instructions(self) -> Mapping[str, int]:
        """How many there are by their first name: `HGMMA` (wgmma), `HMMA`, `UTMALDG` (TMA)..."""
        counts: Counter[str] = Counter()
        for opcode, count in self.opcodes.items():
            counts[opcode.partition(".")[0]] += count
        return counts

    @property
    def spills(self) -> int:
        """Instructions that store registers to the stack or load them back."""
        if self.stack_bytes == 0:
            return 0
        return self.instructions["STL"] + self.instructions["LDL"]

    def count(self, pattern: str) -> int:
        """Instructions whose full name has `pattern` (a regular expression): `LDG.*128`."""
        return sum(count for name, count in self.opcodes.items() if re.search(pattern, name))


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    sm: int,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
) -> Compiled:
    """Compile `kernel` (from `@jit`) for compute capability `sm`, 90 for 9.0.

    `signature` and `constants` as in `Shipped`; together they name every parameter. Raises
    `ValueError` when they don't, and `RuntimeError` in a process whose kernels are interpreted.
    """
    if INTERPRETED:
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET")
    names: list[str] = kernel.arg_names
    if sorted(names) != sorted([*signature, *constants]):
        raise ValueError(
            f"{kernel.__name__} has the parameters {names}; "
            f"got types for {list(signature)} and constants for {list(constants)}"
        )
    types, aligned = {}, {}
    for i, name in enumerate(names):
        types[name], _, divisor = signature.get(name, "constexpr").partition(":")
        if divisor:
            aligned[(i,)] = [["tt.divisibility", int(divisor)]]
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg}
    target = triton.backends.compiler.GPUTarget("cuda", sm, 32)
    built = triton.compile(source, target=target, options=options)
    cubin: bytes = built.asm["cubin"]
    usage = _dumped(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers of {kernel.__name__}: {usage[-500:]}")
    return Compiled(
        sm=sm,
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=int(built.metadata.shared),
        warps=int(built.metadata.num_warps),
        cubin=cubin,
    )


def _dumped(cubin: bytes, what: str) -> str:
    """What cuobjdump tells of machine code; `-sass` takes it a good part of a second."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True)
    return done.stdout
