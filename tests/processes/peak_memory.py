"""What a piece of code has in memory at its worst moment, in tensors."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of living tensors: every storage that an operation returns, until it dies."""

    def __init__(self):
        super().__init__()
        self.living, self.peak, self.sizes = 0, 0, {}

    def count(self, tensor):
        if tensor.layout == torch._mkldnn:  # weights laid out for the processor: a storage that cannot be looked at
            owner, key, size = tensor, id(tensor), tensor.numel() * tensor.element_size()
        else:
            owner = tensor.untyped_storage()
            key, size = owner._cdata, owner.nbytes()
        if key not in self.sizes:
            self.sizes[key] = size
            self.living += size
            self.peak = max(self.peak, self.living)
            weakref.finalize(owner, self.forget, key)

    def forget(self, key):
        self.living -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result
