"""How ternary weights are trained, and what may be said beside it.

ste: latent weights behind a straight-through estimator. sign_legacy, sign_accum: no latent weights, see
sign_training.py.
"""

from transformers import TrainingArguments

from frankenlm.modeling.checks import check_choice

from .sign_training import TERNARY_TRAINING

WAYS = ("ste", *TERNARY_TRAINING)


def check_ternary_training(training: TrainingArguments) -> None:
    """Check the settings of ternary training among a run's.

    Raises:
        ValueError: a way that there is not, or a setting that belongs to another one.
    """
    check_choice("ternary_training", training.ternary_training, WAYS)
    if training.ternary_sign not in (-1, 1):
        raise ValueError(f"--ternary_sign {training.ternary_sign}: must be 1, as published, or -1.")
    if training.ternary_sign != 1 and training.ternary_training != "sign_legacy":
        raise ValueError(
            f"--ternary_sign {training.ternary_sign} belongs to --ternary_training sign_legacy, not "
            f"{training.ternary_training}."
        )
    if not training.ternary_start:
        return
    if training.ternary_start >= 1 and training.ternary_start % 1:
        raise ValueError(f"--ternary_start {training.ternary_start}: a share below 1, or a whole number of steps.")
    if training.ternary_training != "ste":
        raise ValueError(
            f"--ternary_start {training.ternary_start:g}: --ternary_training {training.ternary_training} knows nothing "
            "but codes: leave one of them out."
        )
    if training.early_stopping_patience is not None:
        raise ValueError(
            f"--ternary_start {training.ternary_start:g}: evaluations before it are of weights that do not train yet "
            "as they are used, and --early_stopping_patience would count them: leave one of them out."
        )
