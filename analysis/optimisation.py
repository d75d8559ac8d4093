"""How models were trained, in words: optimiser, schedule and what was done around them."""

from __future__ import annotations

from analysis.kinds import has_prior
from analysis.wording import listing
from fluence.study import Sam, Study, Training

SOURCES = {
    "adam": "Kingma DP, Ba J (2015). Adam: a method for stochastic optimization. ICLR.",
    "adamw": "Loshchilov I, Hutter F (2019). Decoupled weight decay regularization. ICLR.",
    "sam": "Foret P, Kleiner A, Mobahi H, Neyshabur B (2021). Sharpness-aware minimization for efficiently improving "
    "generalization. ICLR.",
    "sgd": "Sutskever I, Martens J, Dahl G, Hinton G (2013). On the importance of initialization and momentum in deep "
    "learning. ICML.",
}
"""References by key."""


def cited(study: Study) -> list[str]:
    """Keys of `SOURCES` that the sentences on a study cite."""
    trainings = [study.training_of(name) for name in study.model_names]
    keys = {"sgd" if t.optimizer == "sgd" else "adamw" if t.weight_decay else "adam" for t in trainings}
    return sorted(keys | ({"sam"} if study.record.sharpness or any(t.sam for t in trainings) else set()))


def optimisation(study: Study) -> str:
    """How the models were trained, in sentences."""
    training = study.training
    schedule = "followed by a cosine decay to zero" if training.schedule == "cosine" else "then constant"
    words = [
        f"{_optimiser(training)} minimised the loss in batches of {training.batch_size} images, with a learning rate "
        f"of {training.learning_rate:g} reached after {_epochs_text(training.warmup_epochs)} of linear warm-up, "
        f"{schedule}.",
        f"{training.validation_fraction:.0%} of the training images were held out for validation, unless the data set "
        "came with a split of its own.",
    ]
    if training.sam:
        words.append(_sam(training.sam))
    if training.micro_batch_size:
        words.append(
            f"Each batch was passed in pieces of at most {training.micro_batch_size} images, whose gradients were "
            "added up; batch normalisation and terms of the whole batch saw one piece at a time."
        )
    if training.gradient_clip_norm:
        words.append(f"Gradients were clipped to an L2 norm of {training.gradient_clip_norm:g}.")
    if training.kl_warmup_epochs and any(
        has_prior(model) for model in (study.models[name] for name in study.model_names)
    ):
        words.append(f"The KL term was faded in over {_epochs_text(training.kl_warmup_epochs)}.")
    if training.horizontal_flip:
        words.append("Images were mirrored at random.")
    if training.early_stopping_epochs:
        words.append(
            f"Training stopped after {_epochs_text(training.early_stopping_epochs)} without a better validation loss."
        )
    return " ".join([*words, *_overrides(study)])


def _optimiser(training: Training) -> str:
    decay = f"weight decay {training.weight_decay:g}"
    if training.optimizer == "sgd":
        extra = f" and {decay}" if training.weight_decay else ""
        return f"Stochastic gradient descent with momentum 0.9{extra} (Sutskever et al. 2013)"
    return f"AdamW (Loshchilov & Hutter 2019; {decay})" if training.weight_decay else "Adam (Kingma & Ba 2015)"


def _sam(sam: Sam) -> str:
    return (
        f"Training was sharpness-aware (Foret et al. 2021): each step applied the gradient at W + ε̂ to the weights W, "
        f"ε̂ = ρ g/‖g‖ with ρ = {sam.rho:g} and one norm over all weights."
    )


def _epochs_text(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _overrides(study: Study) -> list[str]:
    """One sentence for each model that has training settings of its own, besides its number of epochs."""
    sentences = []
    for name in study.model_names:
        own = {key: value for key, value in study.models[name].training if value is not None and key != "epochs"}
        if own:
            settings = listing([_override(key, value) for key, value in own.items()])
            sentences.append(f"“{name}” had settings of its own: {settings}.")
    return sentences


def _override(key: str, value: float | str | Sam) -> str:
    if isinstance(value, Sam):
        return f"sharpness-aware training with ρ = {value.rho:g} (Foret et al. 2021)"
    return f"{key.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}"
