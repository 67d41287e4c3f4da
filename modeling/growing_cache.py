"""A layer of transformers' DynamicCache whose keys and values lie in a buffer with room behind them.

DynamicCache concatenates: every token copies everything before it. Here a new token is written behind the old ones, by
`update` or by a native decoding step, and the buffer doubles when it is full. All else is as in DynamicLayer: what
beams, assisted decoding and cropping do to `keys` and `values` is what they would do there.
Shapes: B batch, G heads of keys, T columns kept, K head width.
"""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

SMALLEST_ROOM = 256  # columns


class GrowingLayer(DynamicLayer):
    """Keys and values of one attention, (B, G, T, K) each, with room to grow.

    What `keys` returns is a view: after `crop`, tokens that come later are written where the cropped ones were. A copy
    of the layer (copy, deepcopy, pickle) has memory of its own. Tensors that are assigned to `keys` and `values` are
    kept as they are until the next token needs room.
    """

    def __init__(self):
        self._rooms: list[torch.Tensor] | None = None  # keys and values, (B, G, room, K)
        self._plain: list[torch.Tensor | None] = [None, None]  # what was assigned, while there is no room
        self._length = 0  # columns in use of the rooms
        super().__init__()

    @classmethod
    def of(cls, layer: DynamicLayer) -> "GrowingLayer":
        """Return a layer that holds what a DynamicLayer holds, without a copy."""
        grown = cls()
        if layer.is_initialized:
            grown.device = layer.device
            grown.is_initialized = True
            grown.keys, grown.values = layer.keys, layer.values
        return grown

    @property
    def keys(self) -> torch.Tensor | None:
        return self._part(0)

    @keys.setter
    def keys(self, tensor: torch.Tensor | None) -> None:
        self._assign(0, tensor)

    @property
    def values(self) -> torch.Tensor | None:
        return self._part(1)

    @values.setter
    def values(self, tensor: torch.Tensor | None) -> None:
        self._assign(1, tensor)

    def _part(self, place: int) -> torch.Tensor | None:
        return self._plain[place] if self._rooms is None else self._rooms[place].narrow(2, 0, self._length)

    def _assign(self, place: int, tensor: torch.Tensor | None) -> None:
        if self._rooms is not None:
            self._plain, self._rooms = [self._part(0), self._part(1)], None
        self._plain[place] = tensor

    def get_seq_length(self) -> int:
        return super().get_seq_length() if self._rooms is None else self._length

    def crop(self, tokens_to_remove: int) -> None:
        if self._rooms is None or tokens_to_remove >= 0:
            super().crop(tokens_to_remove)
        else:
            self._length = max(0, self._length + tokens_to_remove)

    def rooms(self, like: torch.Tensor, new: int) -> list[torch.Tensor]:
        """Return the buffers of keys and values, (B, G, room, K) each, with room for `new` columns behind those in use.

        Args:
            like: (B, G, any, K), of the keys' dtype.

        Raises:
            ValueError: the cache holds keys of another batch, number of heads, width or dtype.
        """
        length = self.get_seq_length()
        if self._rooms is not None and length + new <= self._rooms[0].shape[2] and _fits(self._rooms[0], like):
            return self._rooms
        old = [self.keys, self.values] if length else []
        for part in old:
            if not _fits(part, like):
                raise ValueError(
                    f"the cache holds keys of shape {tuple(part.shape)} and {part.dtype}; the new ones are of shape "
                    f"{tuple(like.shape)} and {like.dtype}."
                )
        size = max(SMALLEST_ROOM, 2 * (length + new))
        rooms = [like.new_empty(*like.shape[:2], size, like.shape[3]) for _ in range(2)]
        for room, part in zip(rooms, old, strict=False):
            room.narrow(2, 0, length).copy_(part)
        self.device, self.is_initialized = like.device, True
        self._rooms, self._plain, self._length = rooms, [None, None], length
        return rooms

    def advance(self, new: int) -> None:
        """Count `new` columns as in use, which have been written into the rooms."""
        self._length += new

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not self._can_write():
            return super().update(key_states, value_states)  # writing would break the backward pass of what has read
        new = key_states.shape[2]
        rooms = self.rooms(key_states, new)
        for room, states in zip(rooms, (key_states, value_states), strict=True):
            room.narrow(2, self._length, new).copy_(states)
        self.advance(new)
        return self.keys, self.values

    def _can_write(self) -> bool:
        """Whether torch allows it: what was made in inference mode stays read-only outside it."""
        return self._rooms is None or torch.is_inference_mode_enabled() or not self._rooms[0].is_inference()

    def reset(self) -> None:
        self._rooms, self._plain, self._length = None, [None, None], 0
        super().reset()

    def __getstate__(self) -> dict:
        parts = [None if part is None else part.clone() for part in (self.keys, self.values)]
        return self.__dict__ | {"_rooms": None, "_plain": parts, "_length": 0}


def _fits(part: torch.Tensor, like: torch.Tensor) -> bool:
    sizes = (part.shape[0], part.shape[1], part.shape[3], part.dtype, part.device)
    return sizes == (like.shape[0], like.shape[1], like.shape[3], like.dtype, like.device)


def grow_layers(cache: DynamicCache, count: int) -> list[GrowingLayer] | None:
    """Return the `count` layers of a DynamicCache, made into growing ones where they stand.

    None for a cache of another class, of other layers, or one that is offloaded: it is left as it is.
    """
    if type(cache) is not DynamicCache or cache.offloading or len(cache.layers) > count:
        return None
    if any(type(layer) not in (DynamicLayer, GrowingLayer) for layer in cache.layers):
        return None
    if len(cache.layers) < count and cache.layer_class_to_replicate is not DynamicLayer:
        return None
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = GrowingLayer.of(layer)
    cache.layers.extend(GrowingLayer() for _ in range(count - len(cache.layers)))
    return cache.layers
