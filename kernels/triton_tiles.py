"""What the Triton kernels share: tiles in memory, and how a tensor's dtype and size choose precision and tile edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.runtime import driver

# Compute capabilities, times ten, with 99 KB of shared memory for a program; 80, 90 and 100 have 163 KB or more.
SMALL_SHARED_MEMORY = (86, 89, 120, 121)

# Sizes that change from batch to batch: kernels are not compiled again where one is 1 or a multiple of 16.
OF_THE_BATCH = ("num_tokens", "weight_count", "norm_count", "length_divisor")


@dataclass(frozen=True)
class Tiles:
    """How the on-chip kernels divide their work.

    Attributes:
        tokens, hidden: edges of a block of [L, dh] in tokens and in hidden units.
        warps: of a program.
        stages: blocks under way from memory.
    """

    tokens: int
    hidden: int
    warps: int
    stages: int

    def launch_arguments(self, num_tokens: int, dh: int) -> dict[str, int]:
        """Compile-time arguments, with no block much larger than what there is."""
        return {
            "BLOCK_TOKENS": block_size(num_tokens, self.tokens),
            "BLOCK_HIDDEN": block_size(dh, self.hidden),
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def has_small_shared_memory() -> bool:
    """Whether the current GPU is one of `SMALL_SHARED_MEMORY`."""
    return not triton.knobs.runtime.interpret and driver.active.get_current_target().arch in SMALL_SHARED_MEMORY


@triton.jit
def load_block(pointer, rows, columns, row_limit, column_limit, row_stride, column_stride):
    """A [rows, columns] block of one matrix, zero outside of it."""
    mask = (rows[:, None] < row_limit) & (columns[None, :] < column_limit)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def store_block(pointer, block, rows, columns, row_limit, column_limit, row_stride, column_stride):
    mask = (rows[:, None] < row_limit) & (columns[None, :] < column_limit)
    block = block.to(pointer.dtype.element_ty)
    tl.store(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, block, mask=mask)


@triton.jit
def load_rates(learning_rates, index, tokens, num_tokens, length):
    """η0, η1, η2 of some tokens, float32; 0 from the row's length on."""
    rates = learning_rates + (index.to(tl.int64) * num_tokens + tokens) * 3
    real = tokens < length
    rate0 = tl.load(rates, mask=real, other=0.0).to(tl.float32)
    rate1 = tl.load(rates + 1, mask=real, other=0.0).to(tl.float32)
    rate2 = tl.load(rates + 2, mask=real, other=0.0).to(tl.float32)
    return rate0, rate1, rate2


@triton.jit
def silu_derivatives(gate):
    """SiLU, its first and its second derivative."""
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    curvature = sigmoid * (1.0 - sigmoid) * (2.0 + gate * (1.0 - 2.0 * sigmoid))
    return gate * sigmoid, slope, curvature


@triton.jit
def lower_tile(index):
    """The index-th tile of a lower triangle, row by row -> (tile row, tile column ≤ tile row)."""
    row = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The float root may be off by one; the exact answer has row (row + 1) / 2 <= index.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What m × m matrices are kept in: float32 for float32, float16 for inputs of 16 bits (bfloat16 has too few bits)."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def dot_precision(dtype: torch.dtype) -> str:
    """How products of float32 are done: three TF32 products on a GPU; Triton's interpreter knows only exact ones."""
    return "tf32x3" if dtype == torch.float32 and not triton.knobs.runtime.interpret else "ieee"


def block_size(size: int, largest: int) -> int:
    """A tile edge for ``size``: a power of two, at least 16 (the smallest that `tl.dot` takes)."""
    return max(16, min(largest, triton.next_power_of_2(size)))


def block_depth(size: int, dtype: torch.dtype) -> int:
    """How far a tile reaches along the summed dimension: half as far in float32, whose split products take more registers."""
    return block_size(size, 32 if dtype == torch.float32 else 64)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float32 if dtype == torch.float32 else tl.float16
