"""What the compiler makes of every kernel, without a GPU.

    python -m livereel.benchmarks.compile_report [--sm 80 90 100 120] [--only conv] [--json FILE]

For each configuration that a launcher picks by default: registers a thread, instructions that spill
them, shared memory a block, warps a block, and instructions: in all, products of matrices by warp
groups (wgmma on Hopper, tcgen05 on Blackwell) and by warps (mma), tensor-map loads (TMA), and loads
and stores of 16 bytes among all of global memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from livereel import kernels
from livereel.kernels.compile import CHIPS, Compiled, Shipped
from livereel.kernels.jit import triton


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel on one chip."""

    op: str
    name: str
    sm: int
    registers: int
    spills: int
    shared_bytes: int
    warps: int
    instructions: int
    group_products: int
    warp_products: int
    tensor_loads: int
    wide_access: int
    access: int

    @classmethod
    def of(cls, op: str, name: str, compiled: Compiled) -> Row:
        """From machine code."""
        first = compiled.instructions
        return cls(
            op=op,
            name=name,
            sm=compiled.sm,
            registers=compiled.registers,
            spills=compiled.spills,
            shared_bytes=compiled.shared_bytes,
            warps=compiled.warps,
            instructions=sum(first.values()),
            group_products=compiled.count(r"^([HQI]GMMA|UTC\w*MMA)"),
            warp_products=compiled.count(r"^[HQI]MMA"),
            tensor_loads=first["UTMALDG"],
            wide_access=compiled.count(r"^(LDG|STG)\..*128"),
            access=first["LDG"] + first["STG"],
        )

    def __str__(self) -> str:
        """A line of the table under `HEAD`."""
        return (
            f"{self.op:18} {self.name:36} {self.sm:>3} {self.registers:>5} {self.spills:>6} "
            f"{self.shared_bytes:>7} {self.warps:>5} {self.instructions:>6} "
            f"{self.group_products:>5} {self.warp_products:>5} {self.tensor_loads:>4} "
            f"{self.wide_access:>5} of {self.access}"
        )


HEAD = (
    f"{'op':18} {'configuration':36} {'sm':>3} {'regs':>5} {'spills':>6} {'shared':>7} "
    f"{'warps':>5} {'instr':>6} {'wgmma':>5} {'mma':>5} {'TMA':>4} {'16 B':>5} of accesses"
)


def shipped() -> Iterator[tuple[str, Shipped]]:
    """Each op file's name with each of its configurations."""
    for module in pkgutil.iter_modules(kernels.__path__):
        file = importlib.import_module(f"{kernels.__name__}.{module.name}")
        for configuration in getattr(file, "SHIPPED", ()):
            yield module.name, configuration


def rows(sms: Sequence[int], only: str = "") -> Iterator[Row]:
    """Compile and read each configuration of the ops whose name has `only`."""
    for op, configuration in shipped():
        for sm in sms:
            if only in op and sm in configuration.sms:
                yield Row.of(op, configuration.name, configuration.compile(sm))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Gives 1 when a kernel spills on sm_90."""
    parser = argparse.ArgumentParser(
        prog="compile_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sm", type=int, nargs="+", choices=tuple(CHIPS), default=[90], help="default: 90")
    add("--only", default="", metavar="TEXT", help="ops whose name has TEXT")
    add("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args(argv)
    print(f"Triton {triton.__version__}\n{HEAD}")
    found = []
    for row in rows(options.sm, options.only):
        found.append(row)
        print(row, flush=True)
    if options.json:
        table = [dataclasses.asdict(row) for row in found]
        content = {"triton": triton.__version__, "kernels": table}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.spills for row in found if row.sm == 90) else 0


if __name__ == "__main__":
    raise SystemExit(main())
