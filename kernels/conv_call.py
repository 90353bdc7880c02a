"""What one call of `causal_conv3d` may look like, the shapes of what it gives, and how it is cut.

Shapes: as in `causal_conv3d`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_like, check_vector, describe, is_aligned
from .conv_tile import block_for, block_of, piece_of
from .tuning import Config

OP = "causal_conv3d"
_MANY = 512
"""Programs that keep a chip's multiprocessors busy for some rounds."""


@dataclass(frozen=True, kw_only=True)
class ConvCall:
    """The numbers of one convolution; `w` and `w_out` are without the gutter."""

    batch: int
    t: int
    h: int
    w: int
    c_in: int
    c_out: int
    kernel: tuple[int, int, int]
    stride_t: int = 1
    stride: int = 1
    frames_out: int = 1
    gutter: bool = False
    residual: bool = False
    normed: bool = False

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, residual: Tensor | None, gain: Tensor | None,
        stride_t: int, stride: int, frames_out: int, gutter: bool,
    ) -> ConvCall:  # fmt: skip
        """Raises `ValueError` where sizes, kernel and strides do not go together."""
        if x.ndim != 5 or weight.ndim != 5 or weight.shape[1] != x.shape[4]:
            raise ValueError(
                f"{OP} wants x [B, T, H, W, C] and weight [C', C, k_t, k_h, k_w]; "
                f"got {describe(x)} and {describe(weight)}"
            )
        batch, t, h, columns, c_in = x.shape
        c_out, _, *kernel = weight.shape
        call = cls(
            batch=batch, t=t, h=h, w=columns - gutter, c_in=c_in, c_out=c_out,
            kernel=(kernel[0], kernel[1], kernel[2]), stride_t=stride_t, stride=stride,
            frames_out=frames_out, gutter=gutter, residual=residual is not None,
            normed=gain is not None,
        )  # fmt: skip
        odd = all(k % 2 == 1 for k in kernel[1:])
        if not odd or call.history < 0 or stride not in (1, 2) or (stride == 2 and call.history):
            raise ValueError(
                f"{OP} wants kernels of odd height and width, no shorter than stride_t, and stride "
                f"2 only where there is no history; got kernel {kernel}, stride_t {stride_t} and "
                f"stride {stride}"
            )
        if min(batch, t, call.h_out, call.w_out) < 1 or t % stride_t or c_out % frames_out:
            raise ValueError(
                f"{OP} wants pixels, T a multiple of {stride_t} and channels of {frames_out}; "
                f"got {describe(x)} and weight {list(weight.shape)}"
            )
        if frames_out > 1 and (call.residual or call.normed):
            raise ValueError(f"{OP} takes no residual and no gain with frames_out {frames_out}")
        return call

    @property
    def history(self) -> int:
        """Frames of the past that the first output frame sees."""
        return self.kernel[0] - self.stride_t

    @property
    def t_out(self) -> int:
        """Output frames, before `frames_out` are made of each."""
        return self.t // self.stride_t

    @property
    def h_out(self) -> int:
        """Output rows."""
        return self._out(self.h, self.kernel[1])

    @property
    def w_out(self) -> int:
        """Output columns."""
        return self._out(self.w, self.kernel[2])

    def _out(self, size: int, k: int) -> int:
        border = k // 2 * (2 if self.stride == 1 else 1)
        return (size + border - k) // self.stride + 1

    def results(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for y and for what is normed, if anything is."""
        y = x.new_empty(
            self.batch,
            self.t_out * self.frames_out,
            self.h_out,
            self.w_out + self.gutter,
            self.c_out // self.frames_out,
        )
        return y, torch.empty_like(y) if self.normed else x.new_empty(0)

    def check(
        self, x: Tensor, cache: Tensor | None, weight: Tensor, bias: Tensor | None,
        residual: Tensor | None, gain: Tensor | None,
    ) -> None:  # fmt: skip
        """Raise `ValueError` for what the kernel cannot take."""
        check_device(OP, x, cache, weight, bias, residual, gain)
        past = (self.batch, self.history, *x.shape[2:])
        in_frame = (x.shape[3] * x.shape[4], x.shape[4], 1)
        for name, frames, shape in (("x", x, x.shape), ("cache", cache, past)):
            if frames is None:
                continue
            alike = frames.shape == shape and frames.dtype == x.dtype and x.dtype in FLOATS
            if not alike or frames.stride()[2:] != in_frame:
                raise ValueError(
                    f"{OP} wants {name} {list(shape)}, each frame contiguous, in bf16, fp16 or "
                    f"fp32 as x; got {describe(frames)}"
                )
        last = weight.is_contiguous(memory_format=torch.channels_last_3d)
        if weight.dtype != x.dtype or not last:
            raise ValueError(
                f"{OP} wants weight channels last (torch.channels_last_3d) in the dtype of x; "
                f"got {describe(weight)}"
            )
        for name, vector in (("bias", bias), ("gain", gain)):
            if vector is not None:
                check_vector(OP, name, vector, self.c_out)
        if residual is not None:
            check_like(OP, "residual", residual, self.results(x)[0])
        most = max(self.c_in, self.c_out // self.frames_out)
        if self.h * (self.w + self.gutter) * most >= 2**31:
            raise ValueError(f"{OP} takes frames of less than 2^31 numbers; got {describe(x)}")

    @property
    def fused(self) -> bool:
        """Whether one block of channels can hold all, so that the norm is part of the launch."""
        return self.normed and block_for(self.c_out) >= self.c_out

    @property
    def odd(self) -> bool:
        """Whether a frame is left when frames that share what they see are paired."""
        return self.kernel[0] > 1 and self.t_out % 2 == 1

    @property
    def key(self) -> str:
        """For the tuning table: what decides which launch is the fastest."""
        names = [f"C{self.c_in}-{self.c_out}", "k{}{}{}".format(*self.kernel)]
        names += [name for name in ("gutter", "residual", "fused", "odd") if getattr(self, name)]
        return "_".join(names)

    def default(self, x: Tensor, past: Tensor) -> Config:
        """On Hopper by the tensor memory accelerator, where that can load `x` and its past."""
        if x.dtype == torch.float32:
            return self.exact()
        if x.device.type != "cuda":
            return self.pixels()
        aligned = (
            self.c_in % 8 == 0
            and self.c_out // self.frames_out % 8 == 0
            and all(
                is_aligned(t) and t.stride(0) % 8 == 0 and t.stride(1) % 8 == 0 for t in (x, past)
            )
        )
        hopper = torch.cuda.get_device_capability(x.device)[0] == 9
        return self.runs() if hopper and aligned and self.in_runs else self.pixels()

    @property
    def in_runs(self) -> bool:
        """Whether taps are runs of pixels, and wide enough to be worth it."""
        unstrided = self.stride_t == 1 and self.stride == 1
        return self.gutter and unstrided and min(self.c_in, self.c_out // self.frames_out) >= 32

    def runs(self) -> Config:
        """Pairs of frames where they are narrow, else as large a tile as registers hold.

        Of narrow layers two programs share a multiprocessor, so that one multiplies while the other
        waits, stores or makes descriptors.
        """
        channels = block_for(self.c_out // self.frames_out)
        if channels <= 96 and self.kernel[0] > 1 and not self.odd:
            return conv_config(channels, frames=2, tma=1, stages=2, maxnreg=128)
        depth = 64 if self.c_in % 64 == 0 else 32
        large = conv_config(channels, pixels=256, depth=depth, tma=1, stages=3)
        many = self.programs(large) * self.batch * self.t_out >= _MANY
        if many and not (self.residual and self.fused):
            return large
        return conv_config(channels, depth=depth, tma=1, stages=4)

    def pixels(self) -> Config:
        """For any chip and any shape."""
        channels = block_for(self.c_out // self.frames_out)
        return conv_config(channels, depth=depth_for(self.c_in, channels))

    def exact(self) -> Config:
        """For fp32: right rather than fast."""
        channels = min(64, block_for(self.c_out // self.frames_out))
        return conv_config(channels, pixels=32, depth=16, warps=4, stages=2)

    def fitting(self, chosen: Config) -> Config:
        """`chosen`, with one frame a program where frames do not pair.

        Raises `ValueError` for one that takes runs where there are none.
        """
        if chosen["tma"] and not (self.gutter and self.stride_t == 1 and self.stride == 1):
            raise ValueError(f"{OP} loads runs (tma) only with a gutter and strides of 1")
        pairs = chosen["tma"] and self.t_out % chosen["frames"] == 0
        return chosen if pairs else {**chosen, "frames": 1}

    def programs(self, chosen: Config) -> int:
        """How many there are for one step in time."""
        size = self.h_out * (self.w_out + self.gutter)
        blocks = -(-(self.c_out // self.frames_out) // chosen["channels"])
        runs = -(-size // (chosen["pixels"] * chosen["tiles"]))  # both rounded up
        return runs * blocks * self.frames_out

    def constants(self, chosen: Config) -> dict[str, int]:
        """The kernel's `tl.constexpr` arguments."""
        widest, rest = block_of(chosen["channels"])
        k_t, k_h, k_w = self.kernel
        return dict(
            C_IN=self.c_in, C_OUT=self.c_out, K_T=k_t, K_H=k_h, K_W=k_w, STRIDE_T=self.stride_t,
            STRIDE=self.stride, FRAMES_OUT=self.frames_out, GUTTER=int(self.gutter),
            FRAMES=chosen["frames"], B_M=chosen["pixels"], B_N=widest, B_REST=rest,
            PIECE=piece_of(chosen["channels"], chosen["pixels"]), B_K=chosen["depth"],
            TILES=chosen["tiles"], TMA=chosen["tma"],
        )  # fmt: skip


def depth_for(c_in: int, channels: int) -> int:
    """How many input channels a step takes: more where the sums leave registers for them."""
    if c_in % 64 == 0 and channels <= 128:
        return 64
    return 32 if c_in > 16 else 16


def conv_config(
    channels: int, *, pixels: int = 128, depth: int = 32, frames: int = 1, tma: int = 0,
    tiles: int = 1, warps: int | None = None, stages: int | None = None, maxnreg: int = 0,
) -> Config:  # fmt: skip
    """`tiles` of `pixels` by `channels` of `frames` frames a program, `depth` inputs at a time.

    `maxnreg` holds the registers of a thread down to so many, so that more programs fit a
    multiprocessor; 0 leaves it to the compiler.
    """
    return {
        "pixels": pixels,
        "channels": channels,
        "depth": depth,
        "frames": frames,
        "tma": tma,
        "tiles": tiles,
        "num_warps": warps or (8 if channels >= 64 else 4),
        "num_stages": stages or (3 if tma or depth == 64 else 4),
        "maxnreg": maxnreg,
    }


def launch_options(chosen: Config) -> dict[str, int | None]:
    """What of `chosen` goes to Triton rather than to the kernel."""
    return {
        "num_warps": chosen["num_warps"],
        "num_stages": chosen["num_stages"],
        "maxnreg": chosen["maxnreg"] or None,
    }
