"""The dry run: what an experiment will take, before a weight is read.

    estimate = dry_run("google/gemma-3-4b-it", config, model_config, prompts)
    print(estimate.table())

Weights are known to a few percent; the rest is what the largest phase takes (damage, the perplexity text, generating).
On a GPU, 0.5 GB of context and a tenth for fragmentation come on top.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from frankenlm.trainer_ext.common.redaction import public_name

from ..answers.packed_linears import laid_out_bytes
from ..answers.rendering import Rendering
from ..cells import make_cells
from ..configs import ExperimentConfig
from ..prompts import LabPrompt
from ..weights.groups import select_group
from ..weights.loading import Loaded
from ..weights.memory import PAUSE_ABOVE, host_memory
from ..weights.model_checks import empty_model, fills_masks, read_tokenizer, resolve_device
from ..weights.parameter_index import unwrap
from ..weights.targets import Group
from .footprint import (
    ModelShape,
    PromptLength,
    baseline_bytes,
    damage_scratch,
    generation_bytes,
    kept_predictions,
    layers_in_4bit,
    probe_bytes,
    read_shape,
    weight_bytes,
)
from .plan import Experiment, render, render_experiment

GPU_CONTEXT = 500_000_000
FRAGMENTATION = 0.10


@dataclass(frozen=True)
class Estimate:
    """Bytes an experiment takes at its peak with `batch_size` answers (`unit`: masked copies of a text) at once.

    parts: what stays (weights, dense copies, baseline) and the phases (damage, perplexity, cache + activations + the
    weights that a CPU has laid out), of which only the largest counts. device: their sum on the device; host: what lies
    in main memory besides, 0 on a CPU.
    largest_batch: most answers at once that stay below 90 % of device_total; 0: not even one.
    """

    model: str
    group: str
    elements: int
    dtype: str
    on_gpu: bool
    batch_size: int
    parts: dict[str, int]
    device: int
    device_total: int
    host: int
    host_total: int
    largest_batch: int
    prompt_tokens: int
    rows: int
    cells: int
    unit: str = "answers"

    @property
    def share(self) -> float:
        return self.device / self.device_total

    @property
    def summary(self) -> str:
        return f"{_gb(self.device)} of {_gb(self.device_total)} ({self.share:.0%}) with {self.batch_size} at once"

    def table(self) -> str:
        """Return the estimate as lines of text."""
        where = "GPU" if self.on_gpu else "main memory"
        lines = [f"{self.model}, group {self.group}: {self.elements:,} elements, {self.dtype}", ""]
        lines += [f"  {name:<24}{_gb(size):>10}" for name, size in self.parts.items() if size]
        lines += [
            f"  {where + ', at its peak':<24}{_gb(self.device):>10}  {self.share:.0%} of {_gb(self.device_total)}"
        ]
        if self.on_gpu:
            lines += [f"  {'main memory':<24}{_gb(self.host):>10}  {self.host / self.host_total:.0%}"]
        fits = f"at most {self.largest_batch} at once stay below {PAUSE_ABOVE:.0%}"
        lines += [
            "",
            f"{self.batch_size} {self.unit} at once, prompts of up to {self.prompt_tokens} tokens; "
            + (fits if self.largest_batch else "not even one fits"),
            f"{self.rows:,} rows in {self.cells:,} cells",
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for a file."""
        return {**asdict(self), "share": self.share}

    def time_range(self, seconds: float, rows: int, tokens: int, limit: float) -> tuple[float, float]:
        """Return (shortest, longest) seconds for all rows, from a probe: `rows` answers with `tokens` tokens in all.

        The shortest: answers are as long as the probe's; the longest: every one is cut off at `limit` tokens.
        """
        if not (seconds > 0 and rows > 0 and tokens > 0):
            raise ValueError("a probe needs time, rows and tokens.")
        return self.rows * seconds / rows, self.rows * limit * seconds / tokens

    def least_seconds(self, bandwidth: float, tokens: int) -> float:
        """Return how long reading alone takes: all weights at `bandwidth` bytes/s for each of `tokens` tokens of every
        batch. Nothing that computes them can be quicker; keys, values and the arithmetic come on top."""
        return math.ceil(self.rows / self.batch_size) * tokens * self.parts["weights"] / bandwidth


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 5e6 else f"{size / 1e6:,.2f} MB"


def dry_run(
    name: str,
    config: ExperimentConfig,
    model_config: PreTrainedConfig,
    prompts: Sequence[LabPrompt],
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
    device_total: int | None = None,
) -> Estimate:
    """Estimate an experiment. Configuration and tokenizer are read, weights are not.

    Args:
        prompts: with a field `text` each.
        device: cpu, cuda, cuda:1; None: the GPU if there is one. device_total: bytes, for a device that is elsewhere.
    """
    empty = empty_model(model_config, trust_remote_code)
    group = select_group(empty, config.group, tied_policy=config.tied_policy, norm_gain=config.norm_gain)
    tokenizer, processor = read_tokenizer(name, config.image is not None, trust_remote_code)
    length = prompt_length(prompts, tokenizer, processor, config, fills_masks(model_config))
    place = resolve_device(device)
    total = device_total if device_total is not None else total_memory(place)
    weights = weight_bytes(empty, group, config)
    if place.type == "cpu":
        in_4bit = layers_in_4bit(empty, group, config)
        weights["laid out"] = laid_out_bytes(empty, getattr(torch, config.dtype), in_4bit)
    return _estimate(name, config, read_shape(empty), group, weights, prompts, length, place, total)


def estimate_run(experiment: Experiment, loaded: Loaded) -> Estimate:
    """Estimate an experiment on a loaded model: its weights as they are, the rest as in `dry_run`."""
    config, model = experiment.config, unwrap(loaded.model)
    group = select_group(model, config.group, tied_policy=config.tied_policy, norm_gain=config.norm_gain)
    weights = weight_bytes(model, group, config) | {"weights": loaded_bytes(model)}
    if loaded.device.type == "cpu":
        weights["laid out"] = laid_out_bytes(model, model.dtype)
    rendering = experiment.rendering or render_experiment(experiment, loaded.tokenizer, loaded.processor)
    length = length_of(rendering, experiment.fills_masks)
    return _estimate(
        loaded.name,
        config,
        read_shape(model),
        group,
        weights,
        experiment.prompts,
        length,
        loaded.device,
        total_memory(loaded.device),
    )


def _estimate(
    name: str,
    config: ExperimentConfig,
    shape: ModelShape,
    group: Group,
    weights: dict[str, int],
    prompts: Sequence[LabPrompt],
    length: PromptLength,
    device: torch.device,
    device_total: int,
) -> Estimate:
    on_gpu = device.type == "cuda"
    plan = _MemoryPlan(config, shape, group, weights, len(prompts), length, on_gpu)
    limit = 1 if config.invariance == "single" else config.max_batch_size
    # a masked model is shown a prompt once for each of its tokens
    batch = min(limit, length.prompt if shape.fills_masks else len(prompts))
    cells = len(make_cells(config))
    kept_in_host = 0 if plan.baseline_on_device else plan.fixed["baseline"]
    return Estimate(
        model=public_name(name),
        group=config.group,
        elements=group.numel,
        dtype=config.dtype,
        on_gpu=on_gpu,
        batch_size=batch,
        parts=plan.parts(batch),
        device=plan.device(batch),
        device_total=device_total,
        host=plan.fixed["predictions"] + kept_in_host if on_gpu else 0,
        host_total=host_memory().total,
        largest_batch=plan.largest_batch(limit, device_total),
        prompt_tokens=length.prompt,
        rows=cells * len(prompts),
        cells=cells,
        unit="masked copies" if shape.fills_masks else "answers",
    )


class _MemoryPlan:
    """The parts of one experiment's memory, at any batch size."""

    def __init__(
        self,
        config: ExperimentConfig,
        shape: ModelShape,
        group: Group,
        weights: dict[str, int],
        prompts: int,
        length: PromptLength,
        on_gpu: bool,
    ):
        self.config, self.shape, self.prompts, self.length, self.on_gpu = config, shape, prompts, length, on_gpu
        self.laid_out = weights.get("laid out", 0)
        self.fixed = {
            "weights": weights["weights"],
            "dense copies": weights["dense copies"],
            "baseline": baseline_bytes(group, config),
            "predictions": kept_predictions(shape) if config.perplexity else 0,
        }
        # packed weights that are requantised stay where they are
        self.baseline_on_device = config.restore_strategy == "subset_on_device" or (
            config.load_4bit and config.quant_target_mode == "requantise"
        )
        self.damage = damage_scratch(group, config.dtype, on_gpu)
        self.probe = probe_bytes(shape, config.dtype) if config.perplexity else 0

    def parts(self, batch: int) -> dict[str, int]:
        generation = generation_bytes(
            self.shape,
            self.config.dtype,
            batch,
            self.length,
            self.config.max_new_tokens,
            more_wait=self.prompts > batch,
            pictures=self.config.image is not None,
        )
        return {**self.fixed, "damage": self.damage, "perplexity": self.probe, **generation, "laid out": self.laid_out}

    def device(self, batch: int) -> int:
        """Return the bytes on the device at the peak."""
        parts = self.parts(batch)
        stays = parts["weights"] + parts["dense copies"]
        if not self.on_gpu:
            stays += parts["baseline"] + parts["predictions"]
        elif self.baseline_on_device:
            stays += parts["baseline"]
        answers = parts["cache"] + parts["activations"] + self.laid_out
        peak = stays + max(parts["damage"], parts["perplexity"], answers)
        return GPU_CONTEXT + int((1 + FRAGMENTATION) * peak) if self.on_gpu else peak

    def largest_batch(self, limit: int, total: int) -> int:
        """Return the most answers at once, up to `limit`, that stay below 90 % of the device."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.device(middle) < PAUSE_ABOVE * total else (low, middle - 1)
        return low


def prompt_length(
    prompts: Sequence[LabPrompt], tokenizer: Any, processor: Any, config: ExperimentConfig, masked: bool
) -> PromptLength:
    """Render the prompts and return their lengths; see `plan.render`."""
    return length_of(render(config, prompts, tokenizer, processor, masked), masked)


def length_of(rendering: Rendering, masked: bool) -> PromptLength:
    """Return the longest rendered prompt, and what all prompts begin with."""
    longest = max(len(prompt.ids) for prompt in rendering.prompts)
    return PromptLength(longest, 0 if masked else len(rendering.prefix))


def total_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory().total


def loaded_bytes(model: PreTrainedModel) -> int:
    """Return the bytes that a model's parameters and buffers take as they are, scales of 4-bit blocks included."""
    total, seen = 0, set()
    for tensor in (*model.parameters(), *model.buffers()):
        parts = [tensor]
        if hasattr(tensor, "quant_state") and tensor.quant_state is not None:
            state = tensor.quant_state
            nested = [state.state2.absmax, state.state2.code] if state.nested else []
            parts += [state.absmax, *nested]
        for part in parts:
            storage = part.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    return total
