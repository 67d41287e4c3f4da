"""A block as an ordinary differential equation, dz/dt = f(t, z), with softmax attention as the field f.

Idea: Chen et al. 2018, arXiv:1806.07366; fixed-step solvers only, gradients through the solver's own steps.
z(0) is the raw residual stream and z(1) the block's output: one residual path. One Euler step is exactly
x + attention(norm(x)). The field has no dropout and does not grow with the number of steps; its cost does.
Shapes: x (B, L, D).
"""

import itertools
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from .bitlinear import LinearFactory, linear_factory
from .context import SequenceContext
from .mixer_attention import StandardAttention
from .mixer_base import Mixer
from .norms import at_least_float32


def euler_step(field, t: float, z: torch.Tensor, h: float) -> torch.Tensor:
    """z + h f(t, z): order 1, one evaluation."""
    return z + h * field(t, z)


def rk4_step(field, t: float, z: torch.Tensor, h: float) -> torch.Tensor:
    """The classic Runge-Kutta step: order 4, four evaluations."""
    k1 = field(t, z)
    k2 = field(t + h / 2, z + h / 2 * k1)
    k3 = field(t + h / 2, z + h / 2 * k2)
    k4 = field(t + h, z + h * k3)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS = {"euler": euler_step, "rk4": rk4_step}


def integrate(field, z: torch.Tensor, solver: str, steps: int) -> torch.Tensor:
    """Carry z from t = 0 to t = 1 in equal steps."""
    for step in range(steps):
        z = SOLVERS[solver](field, step / steps, z, 1 / steps)
    return z


class OdeBlock(Mixer):
    """Attention as a vector field.

    Args:
        time_input: adds t * tau to the field, tau (D,) learnable from 0.
    """

    takes_raw_stream = True
    keeps_keys_only = True  # of every evaluation of the field

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        solver: str = "euler",
        steps: int = 2,
        time_input: bool = False,
        position_type: str = "none",
        rope_theta: float = 1e4,
        qk_norm: bool = False,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.solver = solver
        self.steps = steps
        self.attention = StandardAttention(
            hidden_size,
            num_heads,
            position_type=position_type,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            use_bias=use_bias,
            linear=linear,
        )
        self.carries_position = self.attention.carries_position
        self.tau = nn.Parameter(torch.empty(hidden_size)) if time_input else None
        self.initialize_parameters()

    @classmethod
    def options(cls, config) -> dict:
        options = StandardAttention.options(config) | {
            "solver": config.ode_solver,
            "steps": config.ode_steps,
            "time_input": config.ode_time_input,
            "linear": linear_factory(config, config.use_bitnet and config.ode_bitnet),
        }
        del options["attention_dropout"]  # the field is deterministic
        return options

    def initialize_parameters(self) -> None:
        if self.tau is not None:
            init.zeros_(self.tau)

    def forward(
        self,
        x: torch.Tensor,
        context: SequenceContext,
        logical_layer_idx: int,
        normalize: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, None]:
        """Return z(1) - z(0) in x's dtype; z itself is accumulated in at least float32.

        The field normalises every state it is asked about, so the block hands over how: `normalize` calls its norm.
        """

        evaluation = itertools.count()  # each stage has keys of its own: the cache keeps them apart

        def field(t, z):
            slope, _ = self.attention(normalize(z.to(x.dtype)), context, logical_layer_idx, next(evaluation))
            slope = at_least_float32(slope)
            return slope if self.tau is None else slope + t * self.tau

        start = at_least_float32(x)
        return (integrate(field, start, self.solver, self.steps) - start).to(x.dtype), None
