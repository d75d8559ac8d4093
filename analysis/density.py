"""Principal components from a Gram matrix, and log-densities of images that they were not made from.

Rows of the Gram matrix K are images. Any of them may be training images; centring is done over these alone, so that
each fold's components come from sub-blocks of one and the same K. With X the centred values of the n training images
and K = X Xᵀ = U S² Uᵀ, the components are the rows of Uᵀ X / S and their variances S² / (n − 1).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

_SMALLEST = 1e-6  # share of the first variance, or of an image's own, that is rounding (the products are float32)
MIXTURE_SIZES = (1, 2, 3, 4, 5)
"""Numbers of Gaussians that a mixture is chosen from."""


@dataclass(frozen=True)
class Components:
    """The first principal components of some training images.

    Attributes:
        train: rows of K that they were made from, int [n].
        variances: variance along each component, n − 1 in the denominator, descending, float64 [k].
        weights: centred inner products with the training images → scores, float64 [n, k].
        total_variance: sum of the variances along all components.
        train_means: mean of each training image's inner products with the training images, float64 [n].
        num_units: D, number of units of the layer.
    """

    train: np.ndarray
    variances: np.ndarray
    weights: np.ndarray
    total_variance: float
    train_means: np.ndarray
    num_units: int

    def first(self, number: int) -> Components:
        """The same with fewer components."""
        return Components(
            self.train, self.variances[:number], self.weights[:, :number], self.total_variance, self.train_means,
            self.num_units,
        )  # fmt: skip

    @property
    def residual_variance(self) -> float:
        """σ² = Σ_{j>k} λ_j / (D − k), the variance per unit outside the components; NaN if nothing is outside.

        Source: Tipping & Bishop 1999, eq. 8, with all D − k directions, of which those beyond n − 1 have λ = 0.
        """
        left = self.total_variance - self.variances.sum()
        outside = self.num_units - len(self.variances)
        is_rounding = left <= _SMALLEST * self.total_variance
        return np.nan if outside < 1 or is_rounding else float(left) / outside


@dataclass(frozen=True)
class Projection:
    """Images seen in some components.

    Attributes:
        scores: their coordinates, float64 [images, k].
        squared_residual: squared distance from the plane of the components, float64 [images].
    """

    scores: np.ndarray
    squared_residual: np.ndarray


def principal_components(gram: np.ndarray, train: np.ndarray, num_units: int, most: int) -> Components:
    """Exact principal components of some rows of a Gram matrix, centred over these rows.

    Components with less than a millionth of the first one's variance, or of the mean square of an image, are rounding
    and are left out: there may be fewer than asked for, and none in a constant layer.

    Args:
        gram: inner products, float64 [rows, rows], of values shifted by the same vector for all rows, or not at all.
        train: rows to use, int [n], n ≥ 2.
        num_units: number of units of the layer.
        most: components wanted.
    """
    inner = gram[np.ix_(train, train)]
    train_means = inner.mean(axis=0)
    centred = inner - train_means - train_means[:, None] + train_means.mean()
    size = len(train)
    total = float(np.trace(centred))
    number = min(most, size - 1, num_units)
    squares, vectors = eigh(centred, subset_by_index=(size - number, size - 1), overwrite_a=True, check_finite=False)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    real = squares > _SMALLEST * max(squares[0], float(np.diagonal(inner).mean()))
    squares, vectors = squares[real], vectors[:, real]
    return Components(
        train=train,
        variances=squares / (size - 1),
        weights=vectors / np.sqrt(squares),
        total_variance=total / (size - 1),
        train_means=train_means,
        num_units=num_units,
    )


def project(components: Components, gram: np.ndarray, rows: np.ndarray) -> Projection:
    """Scores of any rows of the Gram matrix, and what the components leave of them.

    Args:
        components: from `principal_components` of the same Gram matrix.
        gram: float64 [rows, rows].
        rows: the rows to project, int [m]; they need not be training images.
    """
    inner = gram[np.ix_(rows, components.train)]
    own_means, mean = inner.mean(axis=1), components.train_means.mean()
    scores = (inner - own_means[:, None] - components.train_means + mean) @ components.weights
    squared_distance = gram[rows, rows] - 2 * own_means + mean
    return Projection(scores, np.maximum(squared_distance - (scores**2).sum(axis=1), 0))


# ── Densities ────────────────────────────────────────────────────────────────────────────────────────────────────


def log_gaussian(train_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Log-density in the components of a Gaussian whose covariance is shrunk towards a sphere, float64 [m].

    Args:
        train_scores: scores of the training images, which have mean 0, float64 [n, k].
        scores: of the images to judge, float64 [m, k].

    Source: Ledoit & Wolf 2004.
    """
    covariance = LedoitWolf(assume_centered=True).fit(train_scores).covariance_
    return np.atleast_1d(multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(scores))


def log_residual(components: Components, squared_residual: np.ndarray) -> np.ndarray:
    """Log-density outside the components of a Gaussian with variance σ² in each direction, float64 [m].

    −½ [(D − k) ln 2πσ² + r² / σ²]. NaN where nothing is outside.

    Args:
        components: with the σ² of the training images.
        squared_residual: r² of the images to judge, float64 [m].

    Source: Tipping & Bishop 1999, eq. 4, for the directions that the components leave.
    """
    variance = components.residual_variance
    outside = components.num_units - len(components.variances)
    return -0.5 * (outside * np.log(2 * np.pi * variance) + squared_residual / variance)


def log_ppca(components: Components, projection: Projection) -> np.ndarray:
    """Log-density of probabilistic principal component analysis, float64 [m]: λ inside the components, σ² outside.

    scikit-learn divides the variance that is left by min(n, D) − k instead of D − k: the same where there are more
    images than units, and far too large a σ² where there are fewer.

    Source: Tipping & Bishop 1999, eqs. 4 and 8, at the maximum of the likelihood but for n − 1 in the variances.
    """
    variances = components.variances
    inside = -0.5 * (np.log(2 * np.pi * variances) + projection.scores**2 / variances).sum(axis=1)
    return inside + log_residual(components, projection.squared_residual)


def log_mixture(train_scores: np.ndarray, scores: np.ndarray, seed: int) -> np.ndarray:
    """Log-density in the components of the mixture of Gaussians that BIC chooses, float64 [m].

    One to five Gaussians, with diagonal or full covariances. Scores are divided by their standard deviations, so that
    the floor under variances means the same for each component.

    Args:
        train_scores: scores of the training images, float64 [n, k].
        scores: of the images to judge, float64 [m, k].
        seed: of the starting points.

    Source: Schwarz 1978 (BIC).
    """
    spread = train_scores.std(axis=0)
    best = _best_mixture(train_scores / spread, seed)
    return best.score_samples(scores / spread) - np.log(spread).sum()


def _best_mixture(standard: np.ndarray, seed: int) -> GaussianMixture:
    """The converged mixture with the lowest BIC; a single Gaussian always converges."""
    found: list[tuple[float, GaussianMixture]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # those that did not converge are not chosen
        for size in MIXTURE_SIZES[: len(standard)]:
            for shape in ("diag", "full"):
                one = GaussianMixture(size, covariance_type=shape, max_iter=500, reg_covar=1e-3, random_state=seed)
                one.fit(standard)
                found += [(one.bic(standard), one)] if one.converged_ else []
    return min(found, key=_bic)[1]


def _bic(entry: tuple[float, GaussianMixture]) -> float:
    return entry[0]
