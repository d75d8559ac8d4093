"""The methods paragraph of the report, written from the settings that were actually used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from analysis import constraints, embedding_words, families, measures, networks, optimisation, typicality_words
from analysis.kinds import (
    circular,
    code_terms,
    codes_recorded,
    has_prior,
    is_tilted,
    name_of_kind,
)
from analysis.wording import count, listing
from fluence.losses.networks import default_layers
from fluence.study import (
    AutoencoderModel,
    CsvDataset,
    Dataset,
    DfcLoss,
    LpipsLoss,
    ModelFeatures,
    PixelLoss,
    PixelsModel,
    Reconstruction,
    SharpnessProbe,
    SsimLoss,
    Study,
    SyntheticDataset,
)

_SOURCES = {
    "vae": "Kingma DP, Welling M (2014). Auto-encoding variational Bayes. ICLR.",
    "tilted": "Floto G, Kremer S, Nica M (2023). The tilted variational autoencoder: improving out-of-distribution "
    "detection. ICLR.",
    "ar-vae": "Pati A, Lerch A (2021). Attribute-based regularization of latent spaces for variational auto-encoders. "
    "Neural Comput Appl 33:4429–4444.",
    "vq-vae": "van den Oord A, Vinyals O, Kavukcuoglu K (2017). Neural discrete representation learning. NeurIPS.",
    "beta": "Higgins I et al. (2017). β-VAE: learning basic visual concepts with a constrained variational framework. "
    "ICLR.",
    "ssim": "Wang Z, Bovik AC, Sheikh HR, Simoncelli EP (2004). Image quality assessment: from error visibility to "
    "structural similarity. IEEE Trans Image Process 13:600–612.",
    "lpips": "Zhang R, Isola P, Efros AA, Shechtman E, Wang O (2018). The unreasonable effectiveness of deep features "
    "as a perceptual metric. CVPR.",
    "dfc": "Hou X, Shen L, Sun K, Qiu G (2017). Deep feature consistent variational autoencoder. WACV.",
    "vggface": "Parkhi OM, Vedaldi A, Zisserman A (2015). Deep face recognition. BMVC.",
    "attgan": "He Z, Zuo W, Kan M, Shan S, Chen X (2019). AttGAN: facial attribute editing by only changing what you "
    "want. IEEE Trans Image Process 28:5464–5478.",
    "ridge": "Hoerl AE, Kennard RW (1970). Ridge regression: biased estimation for nonorthogonal problems. "
    "Technometrics 12:55–67.",
    "permutation": "Phipson B, Smyth GK (2010). Permutation p-values should never be zero. Stat Appl Genet Mol Biol "
    "9:39.",
    "delta": "Freedman D, Lane D (1983). A nonstochastic interpretation of reported significance levels. "
    "J Bus Econ Stat 1:292–298.",
    "adjusted": "Ezekiel M (1930). Methods of correlation analysis. Wiley.",
    "inversion": "Steiger JH, Fouladi RT (1992). R2: a computer program for interval estimation, power calculations, "
    "sample size estimation, and hypothesis testing in multiple regression. Behav Res Methods Instrum Comput "
    "24:581–582.",
    "product": "Zou GY (2007). Toward using confidence intervals to compare correlations. Psychol Methods 12:399–413.",
    "bh": "Benjamini Y, Hochberg Y (1995). Controlling the false discovery rate. J R Stat Soc B 57:289–300.",
    "xi": "Chatterjee S (2021). A new coefficient of correlation. J Am Stat Assoc 116:2009–2022.",
    "hc3": "MacKinnon JG, White H (1985). Some heteroskedasticity-consistent covariance matrix estimators with "
    "improved finite sample properties. J Econom 29:305–325.",
    "max-r": "Westfall PH, Young SS (1993). Resampling-based multiple testing. Wiley.",
    **measures.SOURCES,
    **networks.SOURCES,
    **optimisation.SOURCES,
}


_POPULATION = ("adjusted", "inversion", "product")


@dataclass(frozen=True)
class Facts:
    """What the settings cannot tell, because it only turned out.

    Attributes:
        num_training: training images that were kept; None if the packed file is missing.
        num_rated: rated images that were kept.
        num_excluded: images that were left out, by data set.
        epochs_run: fewest and most epochs over the runs of each model.
        layers: number of recorded layers of each model.
        num_runs: runs of the grid, and those of them that are done.
        versions: package: version.
        commit: commit of the code.
        missing_covariates: covariates that the study names and the data lack.
        compares_groups: whether there are images of several groups, whose slopes were compared.
    """

    num_training: int | None = None
    num_rated: int | None = None
    num_excluded: Mapping[str, int] = field(default_factory=dict)
    epochs_run: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    num_runs: tuple[int, int] = (0, 0)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    missing_covariates: tuple[str, ...] = ()
    compares_groups: bool = False


@dataclass(frozen=True)
class Methods:
    """The methods, ready to be pasted into a paper: titled paragraphs, and the references they cite."""

    paragraphs: tuple[tuple[str, str], ...]
    references: tuple[str, ...]


def write_methods(study: Study, facts: Facts) -> Methods:
    """Writes the methods from the settings and from what turned out."""
    paragraphs = (
        ("Images", _images(study, facts)),
        ("Models", _models(study, facts)),
        ("Training", optimisation.optimisation(study)),
        ("Metrics", _metrics(study, facts)),
        ("Statistics", _statistics(study, facts)),
        ("Software", _software(facts)),
    )
    return Methods(tuple((title, " ".join(text.split())) for title, text in paragraphs), _references(study, facts))


def _images(study: Study, facts: Facts) -> str:
    data = study.data
    shape = {"crop": "cropped centrally to a square", "pad": "padded to a square"}[data.fit]
    size = f"{data.image_size_px} × {data.image_size_px} px"
    excluded = sum(facts.num_excluded.values())
    words = [
        f"Models were trained on {count(facts.num_training, 'image')} of {_dataset(study, data.training)} and applied "
        f"to {count(facts.num_rated, 'rated image')} of {_dataset(study, data.rated)}; the ratings are the column "
        f"“{data.score}”.",
        f"Images were {shape} and resized to {size} RGB with antialiasing, never stretched.",
        f"{count(excluded, 'image')} could not be used and {'was' if excluded == 1 else 'were'} left out; they are "
        "listed with their reasons."
        if excluded
        else "No image was left out.",
        f"Groups are the combinations of {listing(data.group_by)}.",
    ]
    if data.training == data.rated:
        taught = circular(study)
        ratings = f"; {listing(f'“{name}”' for name in taught)} also on their ratings" if taught else ""
        words.append(
            f"The models thus were trained on the rated images themselves{ratings or ' (not on their ratings)'}."
        )
    return " ".join(words)


def _dataset(study: Study, name: str) -> str:
    dataset: Dataset = study.data.datasets[name]
    if isinstance(dataset, SyntheticDataset):
        planted = (
            f"a planted effect of {dataset.effect.property.replace('_', ' ')} on true beauty (R² = "
            f"{dataset.effect.r2:g})"
            if dataset.effect
            else "no planted effect"
        )
        return (
            f"“{name}” (synthetic parametric faces with {planted}, {dataset.num_raters} simulated raters with an "
            f"error of {dataset.rater_noise_sd:g} SD each)"
        )
    what = {
        "cfd": "Chicago Face Database 3.0, Ma, Correll & Wittenbrink 2015",
        "fairface": "FairFace, Kärkkäinen & Joo 2021",
        "folder": "a folder of images",
        "csv": f"a folder of images with the table {dataset.manifest}" if isinstance(dataset, CsvDataset) else "",
    }
    return f"“{name}” ({what[dataset.kind]})"


def _models(study: Study, facts: Facts) -> str:
    groups = study.group_names
    own = [group for group in groups if group != "all"]
    words = [describe_model(study, name, facts) for name in study.model_names]
    if own:
        general = "on the images of all groups together and " if "all" in groups else ""
        words.append(
            f"Each model was trained {general}separately on the images of {count(len(own), 'group')} ({listing(own)})."
        )
    num_runs, num_done = facts.num_runs
    words.append(f"{_seeds(study)}, which makes {count(num_runs, 'run')}, {num_done} of them complete.")
    return " ".join(words)


def _seeds(study: Study) -> str:
    """How often each training was done."""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for name in study.model_names:
        seeds = {seed for model, _, seed in study.trainings if model == name}
        by_seeds.setdefault(tuple(sorted(seeds)), []).append(name)
    if len(by_seeds) == 1:
        same = next(iter(by_seeds))
        return f"Every training was done with {count(len(same), 'seed')} ({listing(same)})"
    told = [f"{listing(names)} with {count(len(s), 'seed')} ({listing(s)})" for s, names in by_seeds.items()]
    return f"Trainings were done of {'; of '.join(told)}"


def describe_model(study: Study, name: str, facts: Facts) -> str:
    """What a model is, what it minimises and how long it was trained."""
    model = study.models[name]
    if isinstance(model, PixelsModel):
        return f"“{name}” is no network: its only layer are the pixels of the image, as a negative control."
    return (
        f"“{name}” is {name_of_kind(model)}, {networks.describe(model)}. Its "
        f"loss is {listing([_term(t) for t in model.reconstruction])}{code_terms(model, study.data.image_size_px)}; "
        f"the mean over the batch was minimised. "
        f"{' '.join([*constraints.constraint_sentences(model), _epochs(study, name, facts)])}"
    )


def _term(term: Reconstruction) -> str:
    weight = "" if term.weight == 1 else f"{term.weight:g} times "
    match term:
        case PixelLoss():
            return f"{weight}the sum of {'absolute' if term.loss == 'l1' else 'squared'} pixel differences"
        case SsimLoss():
            return f"{weight}1 − SSIM (Wang et al. 2004)"
        case LpipsLoss():
            return f"{weight}LPIPS ({term.net}, {_trunk(term.weights)}; Zhang et al. 2018)"
        case DfcLoss():
            return f"{weight}the deep feature consistency loss (Hou et al. 2017) on {_features(term)}"
        case other:
            assert_never(other)


def _features(term: DfcLoss) -> str:
    """The layers and the network whose features are compared."""
    network = term.network
    if isinstance(network, ModelFeatures):
        images = "all training images" if network.group == "all" else f"the group {network.group}"
        layers = listing(term.layers or ("every convolution",))
        return f"{layers} of the frozen encoder of “{network.model}”, trained before with the same seed on {images}"
    name = {
        "vgg16": "VGG16 (Simonyan & Zisserman 2015)",
        "vgg19": "VGG19 (Simonyan & Zisserman 2015)",
        "vggface": "VGGFace (Parkhi et al. 2015)",
        "attgan": "the encoder of AttGAN (He et al. 2019)",
    }[network.kind]
    layers = listing(term.layers or default_layers(network.kind))
    return f"{layers} of {name}, frozen, {_trunk(network.weights).removeprefix('with ')}"


def _trunk(weights: str) -> str:
    if weights == "random":
        return "with random weights, hence no perceptual distance"
    return "ImageNet weights" if weights == "imagenet" else "weights from a file"


def _epochs(study: Study, name: str, facts: Facts) -> str:
    planned = study.training_of(name).epochs
    if planned == 0:
        if study.models[name].pretrained is not None:
            return "Its encoder kept these weights; nothing was trained on, and its latents and decoder are random."
        return "It was left untrained, as a negative control."
    if name not in facts.epochs_run:
        return f"It was to be trained for {count(planned, 'epoch')}; no run got that far."
    fewest, most = facts.epochs_run[name]
    if fewest == most:
        early = "" if most == planned else f" of the {planned} foreseen"
        return f"It was trained for {count(most, 'epoch')}{early}."
    return f"It was trained for {fewest} to {most} epochs (at most {planned})."


def _metrics(study: Study, facts: Facts) -> str:
    record = study.record
    tap = {"post": "after", "pre": "before"}[record.tap]
    code = listing(codes_recorded(_used(study)))
    which = f"every convolution of the encoder and {code}" if record.layers == "encoder" else "chosen layers"
    mean = ", with random latents at their mean," if any(has_prior(model) for model in _used(study)) else ""
    counts = listing([f"{n} in “{name}”" for name, n in facts.layers.items()])
    errors = ["L1", "L2", "1 − SSIM"]
    if record.lpips:
        errors.append(f"LPIPS ({record.lpips.net}, {_trunk(record.lpips.weights)})")
    return (
        f"Each rated image was passed through each network in evaluation mode{mean} and the "
        f"activations of {which} were recorded {tap} the non-linearity{f' ({counts} layers)' if counts else ''}. "
        f"{measures.sentences(study.analysis, record.reference_images)} The reconstruction error of each image was "
        f"measured as {listing(errors)}.{_sharpness(record.sharpness)}"
        f"{typicality_words.sentence(study.analysis.typicality, record.reference_images)}"
        f"{embedding_words.sentence(study.analysis.embeddings)} "
        f"{constraints.gate_sentence(_used(study))}"
    ).strip()


def _sharpness(probe: SharpnessProbe | None) -> str:
    if probe is None:
        return ""
    weights = "all weights" if probe.parameters == "all" else "the weights that lead to the code"
    return (
        f" The sharpness of each image is L(W + ε̂) − L(W) of that image's own training loss (Foret et al. 2021), "
        f"with ε̂ = ρ g/‖g‖ from its own gradient by {weights} and ρ = {probe.rho:g}; terms that only a batch has are "
        "left out. The norm of the gradient was kept beside it."
    )


def _statistics(study: Study, facts: Facts) -> str:
    analysis, ridge = study.analysis, study.analysis.ridge
    used = [name for name in analysis.covariates if name not in facts.missing_covariates]
    missing = f" ({listing(facts.missing_covariates)} not available)" if facts.missing_covariates else ""
    decides = {
        "bh": "the Benjamini-Hochberg adjusted p (Benjamini & Hochberg 1995)",
        "max-r": "the p adjusted by the permutation distribution of the largest |r| (Westfall & Young 1993)",
    }[analysis.correction]
    return (
        f"Each metric was correlated with the ratings (Pearson, Spearman, and Pearson of what linear regression on the "
        f"confounds leaves of both out of fold: partial correlation; and Chatterjee's ξ of the rating as a function of "
        f"the metric, one-sided, Chatterjee 2021). p-values rest on "
        f"{analysis.permutations:,} permutations of the ratings within groups, (1 + #)/(1 + B) (Phipson & Smyth 2010); "
        f"{decides} decides what is called significant at level {1 - analysis.confidence:.2g}. Tests were corrected "
        f"over {families.WORDS[analysis.family]}. {_SLOPES if facts.compares_groups else ''}"
        f"Predictive power is the pooled out-of-fold R², 1 − Σ(y − ŷ)²/Σ(y − ȳ)², of ridge regression (Hoerl & Kennard "
        f"1970) on standardised predictors, its penalty chosen inside each training fold; {ridge.folds} shuffled "
        f"folds, stratified by group, with the images of a person and duplicates kept on one side, and "
        f"{ridge.repeats} random divisions. It can be negative. "
        f"The confound baseline holds {listing(used) or 'nothing'}{missing}; Δ R² is "
        f"the R² of baseline and metrics minus that of the baseline; its p and its noise floor come from permuting "
        f"what the baseline leaves of the ratings (Freedman & Lane 1983). {analysis.confidence:.0%} intervals of Δ R² "
        f"come from {analysis.bootstrap:,} bootstrap samples of the images. Δ R² is what such a regression gets from "
        f"as many images. The share that the metrics explain in the population is the difference of the adjusted R² of "
        f"two linear regressions (Ezekiel 1930), on the first image of each person or set of duplicates; its interval "
        f"inverts the distribution of the squared partial correlation (Steiger & Fouladi 1992) and takes in the "
        f"uncertainty of the baseline (Zou 2007). Several seeds are replicates of the "
        f"training: their mean and spread are reported. Seed of the analysis: {analysis.seed}."
    )


_SLOPES = (
    "Whether the slope of a metric differs between groups was tested by the Wald F of group × metric beside the other "
    "confounds, with HC3 errors (MacKinnon & White 1985), or cluster-robust ones where a person or a picture is there "
    "several times. "
)


def _software(facts: Facts) -> str:
    versions = listing([f"{name} {version}" for name, version in facts.versions.items()])
    commit = f" (commit {facts.commit})" if facts.commit and facts.commit != "unknown" else ""
    return f"fluence{commit}" + (f", with {versions}." if versions else ".")


def _references(study: Study, facts: Facts) -> tuple[str, ...]:
    models = _used(study)
    terms = [term.loss for model in models for term in model.reconstruction]
    cited = [
        *measures.cited(study.analysis),
        "ssim",
        "ridge",
        "permutation",
        "delta",
        "xi",
        *(["hc3"] if facts.compares_groups else []),
        *_POPULATION,
        study.analysis.correction,
    ]
    cited += networks.cited(models)
    cited += ["lpips"] if "lpips" in terms or study.record.lpips else []
    compared = {term.network.kind for model in models for term in model.reconstruction if isinstance(term, DfcLoss)}
    cited += ["vgg"] if {"vgg16", "vgg19"} & compared else []
    cited += ["dfc"] if compared else []
    cited += sorted(compared & {"vggface", "attgan"})
    cited += ["vae"] if any(model.kind == "vae" for model in models) else []
    cited += ["tilted"] if any(is_tilted(model) for model in models) else []
    cited += sorted({model.kind for model in models} & {"ar-vae", "vq-vae"})
    means = ("ssim", "lpips", "dfc")
    mean_and_kl = (has_prior(m) and any(t.loss in means for t in m.reconstruction) for m in models)
    cited += ["beta"] if any(mean_and_kl) else []
    cited += optimisation.cited(study)
    typicality = typicality_words.cited(study.analysis.typicality)
    sources = {*(_SOURCES[key] for key in cited), *(constraints.SOURCES[key] for key in constraints.cited(models))}
    sources |= {embedding_words.SOURCES[key] for key in embedding_words.cited(study.analysis.embeddings)}
    return tuple(sorted({*sources, *(typicality_words.SOURCES[key] for key in typicality)}))


def _used(study: Study) -> list[AutoencoderModel]:
    """The networks of the grid."""
    models = (study.models[name] for name in study.model_names)
    return [model for model in models if not isinstance(model, PixelsModel)]
