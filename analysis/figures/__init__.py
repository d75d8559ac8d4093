"""The figures of the report. Nothing else touches matplotlib.

Each function takes tables and arrays and returns a matplotlib figure; `draw` gives it the common look, writes it as PNG
and PDF, and hands it to the report as a `Plate`.
"""

from analysis.figures.comparisons import MOST_PANELS, Style, compared_curves, metric_by_layer, style_of
from analysis.figures.effects import correlations_by_layer, epsilon_sweep, estimators, forest, gain_over_confounds
from analysis.figures.images import covariate_correlations, distributions, ratings_by_group, scatter
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
from analysis.figures.plate import Plate, Shows, colour_of, draw
from analysis.figures.training import Strip, family_of, loss_curves, reconstructions, term_name

__all__ = [
    "MOST_PANELS",
    "LayerHistogram",
    "MapRow",
    "Plate",
    "Shows",
    "Strip",
    "Style",
    "UnitPanel",
    "attention_maps",
    "colour_of",
    "compared_curves",
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
    "layer_histograms",
    "loss_curves",
    "metric_by_layer",
    "ratings_by_group",
    "reconstructions",
    "scatter",
    "style_of",
    "term_name",
    "unit_histograms",
    "ways_between",
]
