"""The figures of the report. Nothing else touches matplotlib.

Each function takes tables and arrays and returns a matplotlib figure; `draw` gives it the common look, writes it as PNG
and PDF, and hands it to the report as a `Plate`.
"""

from analysis.figures.comparisons import MOST_PANELS, Style, compared_curves, metric_by_layer, style_of
from analysis.figures.diagnostics import noise_ceiling, p_calibration, power, seed_spread
from analysis.figures.effects import correlations_by_layer, epsilon_sweep, estimators, forest, gain_over_confounds
from analysis.figures.images import covariate_correlations, distributions, ratings_by_group
from analysis.figures.inside import (
    LayerHistogram,
    MapRow,
    UnitPanel,
    attention_maps,
    feature_maps,
    gate_values,
    layer_histograms,
    unit_histograms,
    ways_between,
)
from analysis.figures.joint import MOST_POINTS, joint
from analysis.figures.latents import MOST_MAPS, Panel, latent_maps
from analysis.figures.matrices import correlation_matrix, ridge_heat
from analysis.figures.plate import Plate, Shows, colour_of, draw
from analysis.figures.training import Strip, family_of, loss_curves, reconstructions, term_name

__all__ = [
    "MOST_MAPS",
    "MOST_PANELS",
    "MOST_POINTS",
    "LayerHistogram",
    "MapRow",
    "Panel",
    "Plate",
    "Shows",
    "Strip",
    "Style",
    "UnitPanel",
    "attention_maps",
    "colour_of",
    "compared_curves",
    "correlation_matrix",
    "correlations_by_layer",
    "covariate_correlations",
    "distributions",
    "draw",
    "epsilon_sweep",
    "estimators",
    "family_of",
    "feature_maps",
    "forest",
    "gain_over_confounds",
    "gate_values",
    "joint",
    "latent_maps",
    "layer_histograms",
    "loss_curves",
    "metric_by_layer",
    "noise_ceiling",
    "p_calibration",
    "power",
    "ratings_by_group",
    "reconstructions",
    "ridge_heat",
    "seed_spread",
    "style_of",
    "term_name",
    "unit_histograms",
    "ways_between",
]
