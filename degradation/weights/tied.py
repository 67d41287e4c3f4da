"""Token tables that are output heads too: whether they are one, and how they are taken apart and put together."""

from collections.abc import Callable, Iterable

from torch import nn

from frankenlm.modeling.packed_model import output_layer

from ..offloaded import is_offloaded
from .parameter_index import unwrap


def is_tied(model: nn.Module) -> bool:
    """Whether the output head has the weights of the token table; offloaded, only the configuration knows."""
    head, table = output_layer(model), model.get_input_embeddings()
    if head is None:
        return False
    if head.weight.device.type == table.weight.device.type == "meta" and is_offloaded(model, path_of(model, table)):
        return head.weight.shape == table.weight.shape and bool(model.config.get_text_config().tie_word_embeddings)
    return head.weight is table.weight


def other_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return other name -> name of a tied table that is among some names of parameters."""
    if not is_tied(model):
        return {}
    both = [path_of(model, module) for module in (model.get_input_embeddings(), output_layer(model))]
    return {other: name for name in names for other in both if name in both and other != name}


def offloaded_twice(model: nn.Module) -> set[str]:
    """Return the name of a tied head that is offloaded, where it seems to be a parameter of its own."""
    inside = unwrap(model)
    head = output_layer(inside) if _has_meta(inside) and is_tied(inside) else None
    # without offloading it is the table's own parameter, whichever of the two names a model lists
    if head is None or head.weight is inside.get_input_embeddings().weight:
        return set()
    return {name for name in (path_of(model, head),) if is_offloaded(model, name)}


def _has_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the name of a module's weight in the model."""
    return next(f"{path}.weight" for path, each in model.named_modules() if each is module)


def untie(model: nn.Module) -> Callable[[], None]:
    """Give the output head a copy of the table it shares with the input; return the function that undoes it."""
    model = unwrap(model)
    table, head = model.get_input_embeddings(), output_layer(model)
    if head is None or head.weight is not table.weight:
        raise ValueError("the embeddings of this model are not tied.")
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    flags = [(config, config.tie_word_embeddings) for config in configs]
    head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=table.weight.requires_grad)
    for config, _ in flags:
        config.tie_word_embeddings = False

    def tie_again() -> None:
        head.weight = table.weight
        for config, flag in flags:
            config.tie_word_embeddings = flag

    return tie_again
