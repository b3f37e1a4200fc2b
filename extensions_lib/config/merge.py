"""A merge of checkpoints, as it stands in a merge file or on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem
from .expressions import MAX_LENGTH, checked_expression
from .field import option
from .tool import DTYPES, ToolConfig

MODEL_LETTERS = "abcdefghijklmnopqrstuvwxyz"
PART_SOURCES = ("merge", "a", "b", "c", "d")


@dataclass(frozen=True, kw_only=True)
class Formula:
    """What is known of a merge formula without computing: `max_models` None for any number.

    `inputs` is 'weights', or 'differences' where models after A count by what they changed in it. `settings` are the
    settings of `MergeConfig` that it reads; `default_alpha`, `default_beta` fill in for empty ones.
    """

    title: str
    help: str
    min_models: int
    max_models: int | None
    inputs: str = "weights"
    settings: tuple[str, ...] = ("alpha",)
    default_alpha: str = "0.5"
    default_beta: str = "0.25"


def _many(title: str, help: str, *settings: str, min_models: int = 2) -> Formula:
    return Formula(
        title=title, help=help, min_models=min_models, max_models=None, inputs="differences",
        settings=("alpha", *settings), default_alpha="1",
    )  # fmt: skip


FORMULAS: dict[str, Formula] = {
    "weighted_sum": Formula(
        title="Weighted sum", help="The mean of any number of models.", min_models=2, max_models=None,
        settings=("alpha", "weight"),
    ),
    "add_difference": Formula(
        title="Add difference", help="A + alpha (B - C): what B learned beyond C, put onto A.",
        min_models=3, max_models=3, default_alpha="1",
    ),
    "triple_sum": Formula(
        title="Triple sum", help="(1 - alpha - beta) A + alpha B + beta C.", min_models=3, max_models=3,
        settings=("alpha", "beta"), default_alpha="0.25",
    ),
    "sum_twice": Formula(
        title="Sum twice", help="A and B by alpha, then that and C by beta.", min_models=3, max_models=3,
        settings=("alpha", "beta"),
    ),
    "train_difference": Formula(
        title="Train difference", help="What B learned from C, put onto A as if A had been trained on it.",
        min_models=3, max_models=3, default_alpha="1",
    ),
    "smooth_add": Formula(
        title="Smooth add", help="Add difference without the difference's lone peaks.",
        min_models=3, max_models=3, default_alpha="1",
    ),
    "cosine_a": Formula(
        title="Cosine A", help="Where A and B are alike A stays, elsewhere B comes in; lengths left out.",
        min_models=2, max_models=2,
    ),
    "cosine_b": Formula(
        title="Cosine B", help="Where A and B are alike A stays, elsewhere B comes in.", min_models=2, max_models=2,
    ),
    "slerp": Formula(title="SLERP", help="From A to B along the arc between them.", min_models=2, max_models=2),
    "ties": _many("TIES", "What fine-tunes of A changed most and agree on.", "weight", "density"),
    "dare": _many("DARE", "What fine-tunes of A changed, thinned at random.", "weight", "density", "seed"),
    "della": _many("DELLA", "As DARE; what changed more is kept more often.", "weight", "density", "epsilon", "seed"),
    "breadcrumbs": _many("Breadcrumbs", "What fine-tunes of A changed, without extremes.", "weight", "density", "top"),
    "model_stock": _many("Model stock", "The mean of fine-tunes of A, nearer to A the less they agree.", min_models=3),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MergeModel:
    """One of the models."""

    path: str = option(help="A checkpoint: .safetensors, .ckpt or .pt.", file="checkpoint")
    weight: str = option(
        "", help="weighted_sum: its share; of differences: its factor, empty for 1. Written as alpha is. None for A."
    )


@dataclass(frozen=True, kw_only=True)
class MergeConfig(ToolConfig):
    """Everything a merged checkpoint is made from."""

    models: tuple[MergeModel, ...] = option(
        help="A, B, C, ... in order; the result starts from A.", item=MergeModel, of_line=lambda path: {"path": path}
    )
    formula: str = option("weighted_sum", help="How they are combined.", choices=tuple(FORMULAS))
    alpha: str = option(
        "",
        help="A number, 26 (SDXL: 20) block weights, or entries such as '0.5, IN04-IN08=0.2, attn2=1'; "
        "empty: the formula's own.",
    )
    beta: str = option("", help="The second ratio of triple_sum and sum_twice, written as alpha is.")
    density: float = option(0.5, help="Share of changes kept by ties, dare, della, breadcrumbs.", min=0.001, max=1.0)
    epsilon: float = option(
        0.15, help="della: how far the chance to be kept goes apart.", min=0.0, max=1.0, advanced=True
    )
    top: float = option(
        0.01, help="breadcrumbs: share of the largest changes dropped.", min=0.0, max=0.999, advanced=True
    )
    seed: int = option(0, help="dare, della: another number, other changes kept.", min=0, max=2**32 - 1)
    unet: str = option("merge", help="Merged, or one model's own.", choices=PART_SOURCES, advanced=True)
    text_encoder: str = option("merge", help="Merged, or one model's own.", choices=PART_SOURCES, advanced=True)
    vae: str = option("merge", help="Merged, or one model's own.", choices=PART_SOURCES, advanced=True)
    bake_vae: str = option("", help="A VAE file whose values replace the model's.", file="vae")
    discard: str = option(
        "", help="Regular expression; tensors whose name it finds are left out of the result.", advanced=True
    )
    dtype: str = option("fp16", help="Number format of the result.", choices=DTYPES)
    vae_dtype: str = option("keep", help="That of the VAE; keep: as it was.", choices=("keep", *DTYPES), advanced=True)

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        return [*_about_models(self), *_about_numbers(self), *super().problems(), *_about_discard(self.discard)]


def _about_models(config: MergeConfig) -> list[Problem]:
    formula, count = FORMULAS[config.formula], len(config.models)
    problems = []
    if count < formula.min_models or (formula.max_models is not None and count > formula.max_models):
        accepted = f"{formula.min_models}" if formula.max_models else f"{formula.min_models} or more"
        problems.append(Problem("models", f"are {count}; {config.formula} takes {accepted}"))
    weights = [model.weight for model in config.models]
    if "weight" not in formula.settings and any(weights):
        problems.append(Problem("models", f"have weights, which {config.formula} does not use; set alpha"))
    elif weights[:1] not in ([], [""]):
        problems.append(Problem("models[0].weight", f"is {weights[0]!r}; A gets what the others leave, leave it empty"))
    elif config.formula == "weighted_sum" and count > 2 and not all(weights[1:]):
        problems.append(Problem("models", "need one weight each after A, because they are more than 2"))
    if config.formula == "weighted_sum" and any(weights[1:]) and config.alpha:
        problems.append(Problem("alpha", "is given beside weights of the models; give one of them"))
    for part in ("unet", "text_encoder", "vae"):
        source = getattr(config, part)
        if source != "merge" and MODEL_LETTERS.index(source) >= count:
            problems.append(Problem(part, f"is '{source}', but the models end with '{MODEL_LETTERS[count - 1]}'"))
    return problems


def _about_numbers(config: MergeConfig) -> list[Problem]:
    problems = []
    low, high = config.density - config.epsilon / 2, config.density + config.epsilon / 2
    if config.formula == "della" and not (low > 0 and high <= 1):
        bounds = f"{low:.4g} and {high:.4g}"
        problems.append(
            Problem("epsilon", f"is {config.epsilon}; density -+ epsilon / 2 is {bounds}, must be over 0 and at most 1")
        )
    if config.beta and "beta" not in FORMULAS[config.formula].settings:
        problems.append(Problem("beta", f"is given, but {config.formula} has no second ratio; leave it empty"))
    return problems


def _about_discard(expression: str) -> list[Problem]:
    try:
        checked_expression(expression)
    except ValueError as error:
        return [Problem("discard", f"is {expression[:MAX_LENGTH]!r}: {error}")]
    return []
