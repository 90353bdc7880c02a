"""The compiler's report, and what every shipped kernel must become on each chip."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

from livereel import kernels
from livereel.kernels.compile import CHIPS, SHARED_LIMIT, Shipped, compile_for
from livereel.kernels.jit import jit, tl, triton

pytestmark = pytest.mark.compile

MATMULS = {"causal_conv3d", "chunk_attention", "upsample2x_conv"}
"""Ops whose time goes into matrix products: on Hopper they must use its warp-group instructions."""

SPILLED = {
    ("3.6", "C96-96_k333_gutter_fused-runs"): 2,
    ("3.6", "C96-96_k333_gutter_residual_fused-runs"): 45,
}
"""By Triton's version and configuration: the most spills on Hopper, where there are any. Later
versions have none."""


@jit
def _product_kernel(
    p_x: tl.tensor, p_y: tl.tensor, p_out: tl.tensor, n: int, SIZE: tl.constexpr
) -> None:
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    mask = at < n
    b_out = tl.dot(tl.load(p_x + at, mask=mask), tl.load(p_y + at, mask=mask))
    tl.store(p_out + at, b_out, mask=mask)


def test_reports_what_the_machine_code_holds() -> None:
    types = {"p_x": "*bf16:16", "p_y": "*bf16:16", "p_out": "*fp32:16", "n": "i32:16"}
    hopper = compile_for(_product_kernel, types, {"SIZE": 64}, sm=90)
    assert hopper.instructions["HGMMA"] > 0 and hopper.count(r"^LDG.*\.128") > 0
    assert 0 < hopper.registers <= 255 and hopper.warps == 4 and hopper.spills == 0
    assert hopper.shared_bytes >= 2 * 64 * 64 * 2
    ampere = compile_for(_product_kernel, types, {"SIZE": 64}, sm=80)
    assert ampere.instructions["HGMMA"] == 0 and ampere.instructions["HMMA"] > 0
    starved = compile_for(_product_kernel, types, {"SIZE": 64}, sm=80, maxnreg=32)
    assert starved.registers <= 32 and starved.spills > 0


def test_names_parameters_without_type_or_value() -> None:
    with pytest.raises(ValueError, match=r"parameters .*'SIZE'.*got types for \['p_x'\]"):
        compile_for(_product_kernel, {"p_x": "*bf16"}, {"SIZE": 64}, sm=90)


def shipped() -> list[Any]:
    """Each configuration of each op file, for each of its chips."""
    found = []
    for module in pkgutil.iter_modules(kernels.__path__):
        file = importlib.import_module(f"{kernels.__name__}.{module.name}")
        for config in getattr(file, "SHIPPED", ()):
            for sm in config.sms:
                name = f"{module.name}-{config.name}-sm_{sm}"
                found.append(pytest.param(module.name, config, sm, id=name))
    return found


@pytest.mark.parametrize(("op", "config", "sm"), shipped())
def test_shipped_kernels_fit_their_chips(op: str, config: Shipped, sm: int) -> None:
    compiled = config.compile(sm)
    assert sm in CHIPS
    assert compiled.shared_bytes <= SHARED_LIMIT[sm]
    if sm == 90:
        version = ".".join(triton.__version__.split(".")[:2])
        assert compiled.spills <= SPILLED.get((version, config.name), 0)
        assert op not in MATMULS or compiled.instructions["HGMMA"] > 0
