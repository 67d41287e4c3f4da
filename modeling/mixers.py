"""The table of mixers: what `layer_pattern` may name. Their contract is in mixer_base.py.

The configuration asks it for names, and for what a mixer says of itself; a mixer says which fields it is built from.
"""

from .checks import check_choice
from .mixer_attention import SigmoidAttention, StandardAttention, TitanAttention
from .mixer_base import Mixer
from .mixer_mamba import Mamba2
from .mixer_ode import OdeBlock
from .mixer_retention import Retention

MIXERS = {
    "standard_attn": StandardAttention,
    "sigmoid_attn": SigmoidAttention,
    "titan_attn": TitanAttention,
    "retnet": Retention,
    "mamba": Mamba2,
    "ode": OdeBlock,
}


def build_mixer(name: str, **options) -> Mixer:
    """Build a mixer by name; an option it does not know is a TypeError.

    Raises:
        ValueError: unknown name, with a did-you-mean.
    """
    check_choice("mixer", name, MIXERS)
    return MIXERS[name](**options)
