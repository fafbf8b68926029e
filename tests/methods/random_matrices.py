"""What the tests of the methods draw: tensors of random shapes, and permutations of their rows and columns."""

import random
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor


def matrices(
    elements: st.SearchStrategy[float], dtype: type[np.floating] = np.float32, count: int = 1
) -> st.SearchStrategy[Any]:
    """`count` tensors of one random shape [N, C]."""
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=7)
    one = shapes.flatmap(lambda shape: arrays.arrays(dtype, (count, *shape), elements=elements))
    return one.map(lambda stack: tuple(torch.from_numpy(stack).unbind()) if count > 1 else torch.from_numpy(stack[0]))


def permutations(matrix: Tensor, source: random.Random) -> tuple[list[int], list[int]]:
    """Random orders of the rows and the columns of a matrix."""
    rows, columns = list(range(matrix.shape[0])), list(range(matrix.shape[1]))
    source.shuffle(rows)
    source.shuffle(columns)
    return rows, columns
