"""What the methods paragraph says about the metrics of layers that a study chose, and whom it cites for them."""

from __future__ import annotations

from analysis.wording import listing
from fluence.study import Analysis

SOURCES = {
    "gini": "Hurley N, Rickard S (2009). Comparing measures of sparsity. IEEE Trans Inf Theory 55:4723–4741.",
    "hoyer": "Hoyer PO (2004). Non-negative matrix factorization with sparseness constraints. J Mach Learn Res "
    "5:1457–1469.",
    "treves_rolls": "Treves A, Rolls ET (1991). What determines the capacity of autoassociative memories in the brain? "
    "Network 2:371–397.",
    "kurtosis": "Field DJ (1994). What is the goal of sensory coding? Neural Comput 6:559–601.",
    "entropy": "Shannon CE (1948). A mathematical theory of communication. Bell Syst Tech J 27:379–423.",
    "unit": "Willmore B, Tolhurst DJ (2001). Characterizing the sparseness of neural codes. Network 12:255–270.",
}
SAID = {
    "gini": "the Gini index of the magnitudes (Hurley & Rickard 2009; high where few units carry the activity)",
    "l_eps": "Lε, the share of units whose magnitude exceeds ε (low where few units are active)",
    "l0": "L0, the share of units that are not zero",
    "l1": "the mean magnitude (L1 per unit)",
    "l2": "the root mean square (L2 per unit)",
    "hoyer": "Hoyer’s measure (√N − Σ|x|/√Σx²)/(√N − 1) (Hoyer 2004; high where few units carry the activity)",
    "treves_rolls": "the activity ratio (Σ|x|/N)²/(Σx²/N) (Treves & Rolls 1991; low where few units carry the "
    "activity)",
    "kurtosis": "the excess kurtosis (Field 1994)",
    "entropy": "the entropy of the magnitudes divided by their sum, in nats (Shannon 1948)",
    "mean": "the mean",
    "max": "the largest value",
    "dead_fraction": "the share of units that are zero",
    "gini_map": "the Gini index of each feature map’s magnitudes, averaged over the maps that are not silent",
    "gini_position": "the Gini index of the magnitudes across the channels at each place, averaged over the places "
    "that are not silent",
}


def sentences(analysis: Analysis, reference_images: int) -> str:
    """What was computed for each image and layer and entered the statistics, and how ε was chosen.

    Args:
        analysis: settings of the study.
        reference_images: training images that ε is chosen on.
    """
    words = [f"For each image and layer we computed {listing([SAID[name] for name in analysis.metrics])}."]
    if "l_eps" in analysis.metrics:
        epsilon = analysis.epsilon
        words.append(
            f"ε is, for each layer, the {epsilon.report:g} quantile of the non-zero magnitudes over "
            f"{reference_images} training images, so that no rated image takes part in its choice; "
            f"{listing([f'{q:g}' for q in epsilon.quantiles])} were computed."
        )
    if "unit" in analysis.sparsity.per:
        words.append("The sparsity of each unit over the images was computed as well (Willmore & Tolhurst 2001).")
    return " ".join(words)


def cited(analysis: Analysis) -> list[str]:
    """Keys of the sources that these sentences cite."""
    names = ["gini" if name.startswith("gini") else name for name in analysis.metrics]
    return [name for name in (*names, *analysis.sparsity.per) if name in SOURCES]
