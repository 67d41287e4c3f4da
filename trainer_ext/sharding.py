"""FSDP2 for our models, and on CPUs.

- accelerate shards on GPUs and their like; asked for FSDP on CPUs it trains whole replicas, without a word. Its state
  is told here that processes on CPUs shard too (over gloo): the way to try a sharded run on a machine without GPUs.
- fully_shard takes no parameters without a dimension, as Derf's are: while they are trained they have one.
"""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

from .arguments import FrankenTrainingArguments


def shard_on_cpu(args: FrankenTrainingArguments, accelerator: Accelerator) -> bool:
    """Let an Accelerator of processes on CPUs shard, where FSDP is asked for; return whether it was.

    Raises:
        ValueError: FSDP1 was asked for, which has no CPU form.
    """
    state = accelerator.state
    if args.sharding != "FSDP" or state.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP on CPUs needs fsdp_version: 2 in accelerate's configuration, or in --fsdp_config.")
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return True


def give_scalars_a_dimension(model: nn.Module) -> frozenset[str]:
    """Give parameters of shape () the shape (1,), with which everything broadcasts alike; return their names."""
    scalars = {name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.dim() == 0}
    for weight in scalars.values():
        weight.data = weight.data.reshape(1)
    return frozenset(scalars)


def as_saved(
    state_dict: Mapping[str, torch.Tensor], scalars: Iterable[str], tied: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Return gathered weights as the model's class has them: scalars of shape (), tied weights one tensor.

    Args:
        scalars: names from `give_scalars_a_dimension`. tied: a model's all_tied_weights_keys, from copy to original.
    """
    scalars = frozenset(scalars)
    whole = {name: value.reshape(()) if name in scalars else value for name, value in state_dict.items()}
    return whole | {copy: whole[name] for copy, name in tied.items() if copy in whole and name in whole}
