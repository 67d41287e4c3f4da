"""torch.export: each program of a model as a .pt2 file, which torch runs without this package."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from .programs import Program

SUFFIX = ".pt2"


def exported(program: Program) -> ExportedProgram:
    """Return the program for every batch and length up to its limits."""
    counts = {of for axes in program.axes.values() for of in axes.values()}
    dims = {of: Dim(of, max=program.limits[of]) if program.limits[of] else Dim(of) for of in counts}
    shapes = [{at: dims[of] for at, of in program.axes[name].items()} for name in program.inputs]
    if program.name == "step":
        shapes = [*shapes[:2], tuple(shapes[2:])]  # the state is what *state takes
    with torch.no_grad():
        return torch.export.export(program.module, tuple(program.inputs.values()), dynamic_shapes=tuple(shapes))


def write(program: Program, path: Path) -> None:
    """Write a program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own functions
        torch.export.save(exported(program), path)


def opened(path: Path, program: Program) -> Callable[..., list[torch.Tensor]]:
    """Return what runs a written program: tensors in, tensors out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(*inputs))

    return run
