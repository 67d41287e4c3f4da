"""ONNX: each program of a model as a file, run by onnxruntime before it is called done."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from frankenlm.trainer_ext.common.cli import Failed, UserError, one_line

from .programs import Program
from .torch_program import exported

SUFFIX = ".onnx"


def check_packages() -> None:
    """Raises UserError where onnx, onnxscript or onnxruntime is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx requires {error.name}: pip install 'frankenlm[export]'.") from error


def write(program: Program, path: Path) -> None:
    """Write a program.

    Raises:
        Failed: it holds an operator that ONNX does not have.
    """
    with _quietly():
        try:
            written = torch.onnx.export(
                exported(program),
                input_names=list(program.inputs),
                output_names=list(program.outputs),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # which kinds there are is up to torch
            raise Failed(f"{program.name}: ONNX cannot say what this model does: {_innermost(error)}") from error
        written.save(str(path))


def opened(path: Path, program: Program) -> Callable[..., list[torch.Tensor]]:
    """Return what runs a written program in onnxruntime, on one CPU thread: tensors in, tensors out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}  # what no output depends on is left out of the file

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(program.inputs, inputs, strict=True) if name in taken}
        return [torch.from_numpy(array) for array in session.run(list(program.outputs), given)]

    return run


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)[:300]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what torch's exporter says of itself; what matters of it is an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
