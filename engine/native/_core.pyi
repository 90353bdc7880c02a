"""The C++ core. Layouts and formulas stand in the headers of `csrc/`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """One block of Philox 4x32-10: a counter of four and a key of two 32-bit words to four words.

    Raises `TypeError` for another number of words or one that is negative or above 32 bits.
    """

def fill_normal(out: npt.NDArray[np.float32], *, seed: int, chunk: int, step: int) -> None:
    """Fill `out`, one-dimensional and contiguous, with the normals of (seed, chunk, step).

    Seed and chunk are unsigned 64-bit, step unsigned 32-bit. Gives up the GIL while it works.
    Raises `TypeError` when a number does not fit, `ValueError` for another buffer and `BufferError`
    for one that is read-only.
    """

def rms_norm_silu(
    x: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    gain: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
) -> None:
    """`y = silu(x / |x| * gain)` row by row; see `csrc/rms_norm_silu.h`.

    `x` and `y` are dense `[rows, channels]` of one type, float32 or bfloat16 as its uint16 bits;
    `gain` has an item for each channel. Gives up the GIL while it works, in one thread. Raises
    `ValueError` for other shapes and types.
    """

# The kernels of `csrc/cpu`, whose headers have the formulas. Tensors come as DLPack capsules, as
# `torch.utils.dlpack.to_dlpack` gives them: bfloat16 but for gains, biases, gates and tables, which
# are float32. They are looked at, not taken, and may be passed again. All give up the GIL while
# they work, in `threads` threads, and raise `ValueError` for tensors of other types or shapes,
# `TypeError` for what is no such capsule. Only where `dot_supported()` may they be called.

def dot_supported() -> bool:
    """Whether this build and this processor have AVX512-BF16."""

class PackedMatrix:
    """Weights `[outputs, depth, taps]`, an even depth, copied into the order the kernels read."""

    def __init__(self, weights: object) -> None: ...
    @property
    def outputs(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def taps(self) -> int: ...

def linear(
    x: object,
    weights: PackedMatrix,
    y: object,
    bias: object | None,
    gelu: bool,
    residual: object | None,
    gate: object | None,
    threads: int,
) -> None:
    """`y = x w^T + bias`, then GELU, then `residual + gate y`, as far as they are asked for.

    `gate` `[groups, outputs]` has a row for each of as many even parts of x's rows. `y` may be
    `residual`.
    """

def layer_norm(
    x: object, scale: object, shift: object, y: object, offset: float, eps: float, threads: int
) -> None:
    """`y = norm(x) (offset + scale) + shift` over the last dim; `scale` and `shift`
    `[groups, width]`. `y` may be `x`."""

def rms_norm(x: object, gain: object, eps: float, y: object, threads: int) -> None:
    """`y = x / sqrt(mean(x^2) + eps) * gain` over the last dim. `y` may be `x`."""

def rotate(x: object, cos: object, sin: object, y: object, threads: int) -> None:
    """Rotate `[..., heads, head]` by tables `[positions, ..., head]`, row r by position
    `r % positions`."""

def qk_norm_rotate(
    qkv: object,
    q_gain: object,
    k_gain: object,
    eps: float,
    cos: object,
    sin: object,
    q: object,
    k: object,
    k_rotated: object,
    threads: int,
) -> None:
    """Of `qkv` `[rows, 3 width]` the queries, normed and rotated, and the keys, normed, and then
    rotated too."""

def attention(
    q: object, keys: Sequence[object], values: Sequence[object], out: object, threads: int
) -> None:
    """`out = softmax(q k^T / sqrt(width)) v` of `[tokens, heads, width]`, over the keys of all
    pieces."""

def pad(
    x: object, past: object | None, gain: object | None, out: object, kept: object | None,
    threads: int,
) -> None:  # fmt: skip
    """Frames `[T, H, W, C]` behind those of `past` and within a border, as large as `out` has room
    for; with `gain`, those of `x` normed and through SiLU. `kept` becomes the newest frames."""

def convolve(
    x: object,
    weights: PackedMatrix,
    taps: Sequence[tuple[int, int, int]],
    bias: object | None,
    residual: object | None,
    out: object,
    threads: int,
) -> None:
    """`out` `[T, H, W, outputs]`, any strides but the last, from `x` `[T', H', W', depth]`, whose
    frames, rows and columns `taps` count from; plus `residual`, laid out as `out` is."""

def unfold(x: object, y: object, threads: int) -> None:
    """`[T, H, W, 3 p p]`, channels in the order (color, column, row), to `[T, p H, p W, 3]` in
    [-1, 1]."""

def to_bytes(x: object, y: npt.NDArray[np.uint8], threads: int) -> None:
    """[-1, 1] to 0..255, rounded to nearest; `y` one-dimensional and contiguous."""

class Window:
    """The KV ring's arithmetic: a stream's first `sinks` latent frames, the newest `anchors` of
    those whose number is a multiple of `anchor_every`, and the newest `window`.

    Chunks have at most `chunk` frames. `csrc/window.h` says what a chunk sees and how slots are
    given. Numbers of frames go up to 2^62 - 1; methods raise `ValueError` for others, `TypeError`
    for what is no 64-bit number.
    """

    def __init__(
        self, *, sinks: int, window: int, chunk: int, anchors: int = 0, anchor_every: int = 1
    ) -> None:
        """Raises `ValueError` for lengths that cannot be."""

    @property
    def slots(self) -> int:
        """How many latent frames the ring holds."""

    def slot(self, frame: int) -> int:
        """Where latent frame `frame` lies while it is kept."""

    def visible(self, first: int) -> list[int]:
        """Latent frames that a chunk starting at frame `first` sees, the oldest first.

        A frame's place in the list is its position for rotation; the chunk's own follow on.
        """

    def anchors_before(self, before: int) -> list[int]:
        """The newest `anchors` anchors among the frames below `before` that are no sinks."""

class FrameRing:
    """Frames from one process to another through shared memory; `csrc/frame_ring.h` has the rules.

    One thread writes and one reads; both give up the GIL while they wait or copy.
    """

    @staticmethod
    def create(*, slots: int, slot_bytes: int, drop_oldest: bool) -> FrameRing:
        """New memory, all of it taken at once: a full ring lets go of its oldest unread frame, or
        else holds its writer up.

        Raises `ValueError` for sizes that cannot be, `RuntimeError` where there is no memory.
        """

    @staticmethod
    def attach(fd: int) -> FrameRing:
        """The reader's end, by the file descriptor of the writer's, which is copied; once in a
        ring's life. Raises `ValueError` for anything else."""

    def fileno(self) -> int:
        """The memory's file descriptor."""

    def write(
        self, frame: npt.NDArray[np.uint8], *, tag: int = 0, timeout: float = 0.0
    ) -> bool:  # fmt: skip
        """Copy a dense frame of one to four dimensions in; False when no slot came free in time.

        A reader that died makes room. Raises `ValueError` for a frame that no slot has room for.
        """

    def read(self, *, timeout: float = 0.0) -> RingFrame | None:
        """The oldest unread frame, or None when none came in time."""

    @property
    def room(self) -> int:
        """Slots that are free."""

    @property
    def dropped(self) -> int:
        """Frames that were written over unread."""

    @property
    def slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...

class RingFrame:
    """A frame where it lies in a ring: a read-only buffer of uint8, and a DLPack tensor.

    Its slot is free again once this and all arrays over it are gone.
    """

    @property
    def number(self) -> int:
        """How many were written before it."""

    @property
    def tag(self) -> int:
        """What the writer gave it."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(self, **wishes: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Pace:
    """What a chunk is to be made with: optional work or not, passes, and frames a second."""

    @property
    def optional_work(self) -> bool: ...
    @property
    def passes(self) -> int: ...
    @property
    def rate(self) -> float: ...

class Timing:
    """How a chunk came: seconds before it was due (negative when late), and jitter in seconds."""

    @property
    def lead(self) -> float: ...
    @property
    def jitter(self) -> float: ...

class Pacer:
    """Deadlines of a stream's chunks, and what it does without when it falls behind.

    `csrc/pacer.h` has the rules. Times are seconds from any origin. Not to be used by two threads
    at once.
    """

    def __init__(self, *, rate: float, chunk: int, adapt: bool) -> None:
        """`rate` is the target in frames a second, `chunk` the frames of a whole chunk; a pacer
        that does not adapt does without nothing. Raises `ValueError` for values that cannot be."""

    def begin(self, now: float, *, passes: int) -> Pace:
        """A chunk is begun, for which `passes` are wanted; one not ended is forgotten.

        Raises `ValueError` for a time that is not finite or passes below 1.
        """

    def end(self, now: float, *, frames: int) -> Timing:
        """The chunk that was begun is ready.

        Raises `RuntimeError` when none was begun, `ValueError` for a time before its beginning or
        fewer frames than 1.
        """
