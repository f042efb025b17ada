"""The largest eigenvalues by Lanczos iterations: SciPy's ARPACK with matrix-vector products."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiso.lab.theory.curvature.second_derivatives import Product


def top_eigenvalues(
    product: Product, like: Tensor, count: int, *, tolerance: float = 1e-4
) -> NDArray[np.float64]:
    """The `count` largest eigenvalues (with their signs) of a symmetric A, descending.

    Args:
        product: v ↦ A v.
        like: A vector [d] with the dtype for products.
        count: Number of eigenvalues, below d.
        tolerance: Relative accuracy.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    def matvec(v: NDArray[np.float64]) -> NDArray[np.float64]:
        return product(torch.from_numpy(v.reshape(-1)).to(like)).detach().double().numpy()

    size = len(like)
    start = np.random.Generator(np.random.Philox(0)).normal(size=size)
    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    found = eigsh(operator, count, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return np.sort(np.asarray(found))[::-1]
