"""The heads of the attention layer that a parameter belongs to, as far as they are known."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedConfig

from ..layouts.cuts import Heads, Pick
from ..layouts.families import Family
from ..layouts.heads import latent_heads, query_heads, stated_width
from .mixers import root_of
from .parameter_index import Entry

HEADED = {"attn_q": "q", "attn_k": "k", "attn_only": "v", "attn_o": "o", "vision_attn": "v"}


def attention_heads(config: PreTrainedConfig) -> int | None:
    """Return how many heads every attention layer has; None where there are no such layers, or they differ."""
    name = "num_attention_heads"
    found = config.to_dict().get(config.attribute_map.get(name, name))
    return found if isinstance(found, int) and found > 0 else None


class HeadFinder:
    """Looks up the heads of one model. family: None where its class names its groups. mixers: of `mixer_roots`."""

    def __init__(self, model: nn.Module, family: Family | None, mixers: Sequence[str]):
        self.model, self.family, self.mixers = model, family, mixers
        self.config = model.config.get_text_config()

    def of(self, group: str, pick: Pick, entry: Entry) -> Heads | None:
        """Return the heads of the layer of a parameter that a pick found for a group; None where not known."""
        if entry.modality == "vision":
            config = self.model.config.vision_config
            return Heads(*[config.num_attention_heads] * 2, config.hidden_size // config.num_attention_heads)
        if self.family is None:
            return self._of_parent(group, entry)
        if not self.family.equal_heads:
            return None
        if not self.family.everywhere:
            return self._guessed(group, pick, entry)
        heads = self._of_config()
        if heads is not None and pick.cut and self.family.grouped_rows:
            left = entry.shape[0] // heads.width - heads.query
            heads = heads._replace(key_value=max(1, left // 2))
        return heads

    def _of_config(self) -> Heads | None:
        query, fields = attention_heads(self.config), self.config.to_dict()
        if query is None:
            return None
        width = fields.get("head_dim") or self.config.hidden_size // query
        return Heads(query, fields.get("num_key_value_heads") or query, width)

    def _guessed(self, group: str, pick: Pick, entry: Entry) -> Heads | None:
        """Heads as the layer's own module states them, or the configuration; of another size they are not known."""
        if group not in HEADED:
            return None
        if pick.cut:
            return latent_heads(self.model, entry.name)
        if len(entry.shape) != 2:
            return None  # a convolution's kernel
        part, size = HEADED[group], entry.shape[int(group == "attn_o")]
        width = stated_width(self.model, entry.name, part, size)
        if width is not None:
            number = size // width
            # Qwen3-Next's queries have a gate beside them, twice the rows
            fits = part != "q" or query_heads(self.model, entry.name) in (number, None)
            return Heads(number, number, width) if fits else None
        # a mixer with a state has heads of its own, which the configuration calls by other names
        heads = self._of_config() if root_of(entry, self.mixers) is None else None
        return heads if heads is not None and size == heads.rows(part) else None

    def _of_parent(self, group: str, entry: Entry) -> Heads | None:
        parent = self.model.get_submodule(entry.name.rpartition(".")[0].rpartition(".")[0])
        number = parent.__dict__.get("num_heads")
        if group not in HEADED or not isinstance(number, int):
            return None
        return Heads(number, number, entry.shape[1 if group == "attn_o" else 0] // number)
