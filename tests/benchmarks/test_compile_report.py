from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from livereel.benchmarks import compile_report
from livereel.benchmarks.compile_report import HEAD, Row, main, shipped
from livereel.kernels.compile import Compiled

COMPILED = Compiled(sm=90, registers=168, stack_bytes=16, shared_bytes=1024, warps=12, cubin=b"")
# Where a cached property keeps what it found: so nothing is disassembled.
COMPILED.__dict__["opcodes"] = Counter(
    {"LDG.E.128": 2, "LDG.E.U16": 1, "STG.E.128": 1, "HGMMA.64x64x16.F32.BF16": 4}
    | {"HMMA.16816.F32.BF16": 8, "UTMALDG.2D": 3, "STL": 1, "LDL.LU": 2, "FADD": 10}
)


def test_a_row_counts_what_matters() -> None:
    row = Row.of("some_op", "bf16", COMPILED)
    assert (row.registers, row.spills, row.shared_bytes, row.warps) == (168, 3, 1024, 12)
    assert (row.instructions, row.group_products, row.warp_products) == (32, 4, 8)
    assert (row.tensor_loads, row.wide_access, row.access) == (3, 3, 4)
    assert str(row).split()[:4] == ["some_op", "bf16", "90", "168"]
    assert str(row).index("12 ") < HEAD.index(" instr")


def test_every_op_that_ships_a_kernel_is_in_the_table() -> None:
    ops = {op for op, _ in shipped()}
    assert {"norm_modulate", "rms_norm_silu", "group_norm_silu", "to_pixels"} <= ops
    names = [(op, configuration.name) for op, configuration in shipped()]
    assert len(names) == len(set(names))


def test_the_table_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def compiled(self: object, sm: int) -> Compiled:
        asked.append(sm)
        return COMPILED

    monkeypatch.setattr(compile_report.Shipped, "compile", compiled)
    path = tmp_path / "table.json"
    code = main(["--sm", "80", "90", "--only", "gate_residual", "--json", str(path)])
    assert code == 1  # it spills
    assert sorted(asked) == [80] * (len(asked) // 2) + [90] * (len(asked) // 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == HEAD and len(lines) == 2 + len(asked)
    assert all(line.startswith("gate_residual ") for line in lines[2:])
    assert len(json.loads(path.read_text())["kernels"]) == len(asked)
