"""What causal heads share for generate(): their cache, and clear refusals of what it cannot do."""

import torch
from transformers import Cache, GenerationConfig
from transformers.generation import GenerationMixin
from transformers.utils.deprecation import deprecate_kwarg

from .cache import StateCache

# Until transformers 5.24 a cache was passed as `past_key_values`; our models take that name as long as theirs do.
takes_old_cache_name = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")


def resolve_cache(model, cache: Cache | None, use_cache: bool | None) -> StateCache | None:
    """Return the cache that a forward pass of `model` (with `config` and `new_cache()`) shall use, or None.

    `use_cache=None` means the config's `use_cache`, but not while training, nor in torch.export, whose programs return
    tensors. Gradient checkpointing runs parts of the pass twice, which a cache would not survive, so training with it
    keeps none.

    Raises:
        ValueError: `cache` is of another class, belongs to another stack, or meets a bidirectional model or
            gradient checkpointing; a cache is given or wanted while training under `set_training_window`.
    """
    config = model.config
    if (cache is not None or use_cache) and model.training and model.training_window is not None:
        raise ValueError(
            f"{'use_cache=True' if cache is None else 'cache'} is given while training under a drawn window, "
            f"set_training_window({model.training_window}), but a cache keeps what the configuration's "
            f"attention_window={config.attention_window} needs: leave it out, or call eval() or "
            "set_training_window(None) first."
        )
    if cache is not None:
        _check_cache(cache, config)
        if model.training and model.gradient_checkpointing:
            raise ValueError(
                "cache is given while training with gradient checkpointing, which would append to it twice: "
                "switch one of them off."
            )
        return cache
    if use_cache is None:
        use_cache = config.use_cache and not model.training and not torch.compiler.is_exporting()
    if not use_cache or not config.is_decoder or (model.training and model.gradient_checkpointing):
        return None
    return model.new_cache()


def _check_cache(cache: Cache, config) -> None:
    if not config.is_decoder:
        raise ValueError("cache is given, but this model is bidirectional (is_decoder=False).")
    if not isinstance(cache, StateCache):
        raise ValueError(
            f"cache is a {type(cache).__name__}, but this model keeps more than keys and values: leave it "
            "out, or pass model.new_cache(). Where prefix tuning brings one: choose another adapter, such as LoRA."
        )
    if len(cache.layers) != config.num_hidden_layers or cache.attention_window != config.attention_window:
        raise ValueError(
            f"cache has {len(cache.layers)} entries and attention_window={cache.attention_window}, but the "
            f"model has {config.num_hidden_layers} logical layers and attention_window={config.attention_window}."
        )


class CachedGenerationMixin(GenerationMixin):
    """generate() with the StateCache that the stack `model` makes; the head implements `can_forget()`.

    It stands before the model class among a head's bases, for `_is_stateful` to be its own.
    """

    @property
    def _is_stateful(self) -> bool:
        # Assisted decoding guesses several tokens and takes some back, which only a full key-value cache can do.
        return not self.can_forget()

    def new_cache(self) -> StateCache:
        """Return an empty cache for generate() or forward()."""
        return self.model.new_cache()

    def can_forget(self) -> bool:
        """Return whether the cache can be cropped: the model keeps keys and values of all tokens and nothing else."""
        raise NotImplementedError(f"{type(self).__name__} must implement can_forget()")

    def generate(self, inputs: torch.Tensor | None = None, generation_config=None, **kwargs):
        """As in transformers.

        Raises:
            ValueError: also for an empty prompt, or a row of pads alone, of which transformers would make a text; or as
                the assistant of another model, where the cache cannot take back what that one refuses.
        """
        if generation_config is not None and generation_config.is_assistant and not self.can_forget():
            raise ValueError(
                f"{type(self).__name__} cannot be the assistant of another model: its memory, recurrence or attention "
                "window cannot take tokens back. Choose another assistant_model, or leave it out."
            )
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and embeds.shape[1] == 0:
            raise ValueError("inputs_embeds is empty: give at least one token.")
        if prompt is not None and prompt.shape[-1] == 0 and embeds is None:
            raise ValueError("the prompt is empty: give at least one token, for instance bos_token_id.")
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask.any(1).all()):
            row = int((~mask.bool().any(1)).nonzero()[0])
            raise ValueError(f"the prompt is empty in row {row}: its attention_mask has no real token.")
        if prompt is not None and embeds is None:  # before transformers advises to ask for more tokens
            self._check_positions_suffice(mask, prompt.shape[-1] + 1)
        return super().generate(inputs, generation_config, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Not available; generate_batch() and `transformers serve` ask for it.

        Raises:
            NotImplementedError: always: its paged cache has no place for what our layers remember.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: continuous batching (generate_batch) keeps keys and values in a cache of its own, "
            "and this model a StateCache: use generate() with a padded batch."
        )

    def max_positions(self) -> int | None:
        """Return how many positions the model has embeddings for; None when it can go on for ever."""
        return self.model.max_positions()

    def _prepare_generated_length(self, generation_config, has_default_max_length, *args, **kwargs) -> GenerationConfig:
        """As in transformers, but that the bound which is saved with a model yields to `max_new_tokens` in silence:
        of the two, the caller has asked for one."""
        is_own_bound = generation_config.max_length == self.generation_config.max_length
        if generation_config.max_new_tokens is not None and is_own_bound:
            has_default_max_length = True
        return super()._prepare_generated_length(generation_config, has_default_max_length, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> None:
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={implementation!r} is not available: this model keeps a StateCache, of constant "
                "size where the architecture promises it. Leave cache_implementation out."
            )
        self._check_positions_suffice(model_kwargs.get("attention_mask"), max_cache_length)
        given = model_kwargs.get("cache")
        if given is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = given = self.new_cache()
        if given is not None:
            _check_cache(given, self.config)

    def _check_positions_suffice(self, attention_mask, columns: int) -> None:
        limit = self.max_positions()
        pads = 0 if attention_mask is None else int((attention_mask == 0).sum(1).min())
        if limit is not None and columns - pads > limit:
            raise ValueError(
                f"prompt and new tokens need {columns - pads} positions but max_position_embeddings={limit}: shorten "
                "the prompt or lower max_new_tokens."
            )
