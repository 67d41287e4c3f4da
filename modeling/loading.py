"""Loading that says in one line what is wrong with a checkpoint."""

from safetensors import SafetensorError


class MismatchError(ValueError, RuntimeError):
    """A checkpoint's tensors are not of the configuration's shapes (transformers raises a RuntimeError for it)."""


class LoadsClearly:
    """Stands before PreTrainedModel among a model's bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers.

        Raises:
            ValueError: weights that are damaged or cut short, or (unless ignore_mismatched_sizes=True) of other shapes
                than the configuration's; the message names the first.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        ignores = kwargs.pop("ignore_mismatched_sizes", False)
        options = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} are damaged or cut short ({error}). Copy or download "
                "them again."
            ) from error
        if info["mismatched_keys"] and not ignores:
            raise MismatchError(_describe(pretrained_model_name_or_path, info["mismatched_keys"]))
        return (model, info) if wants_info else model


def _describe(name, mismatched) -> str:
    key, found, expected = min(mismatched)
    others = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    return (
        f"{name}: {key} is {tuple(found)} in the checkpoint, but {tuple(expected)} by the configuration{others}. Load "
        "it with the configuration it was saved with; ignore_mismatched_sizes=True starts these tensors anew."
    )
