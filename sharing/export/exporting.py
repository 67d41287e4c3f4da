"""`frankenlm export` behind its flags: a model is read, written, read back and compared, and only then kept."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError, user_mistakes
from frankenlm.trainer_ext.common.files import write_json
from frankenlm.trainer_ext.common.opening import read_config, read_tokenizer, read_weights
from frankenlm.trainer_ext.common.output_streams import say
from frankenlm.trainer_ext.common.redaction import public_name
from frankenlm.trainer_ext.packed_checkpoints import check_new_folder, new_folder

from . import gguf_files, onnx_files, torch_program
from .comparing import TOLERANCE, largest_difference
from .programs import Program, programs_of

REPORT = "export.json"
PROGRAMS = {"torch": torch_program, "onnx": onnx_files}
FORMATS = (*PROGRAMS, "gguf")
PACKAGES = {"torch": (), "onnx": ("onnx", "onnxruntime"), "gguf": ("gguf",)}
HEADS = ("MaskedLM", "CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")


def export(args: argparse.Namespace) -> None:
    """Export a model as scripts/export.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before anything is written.
        Failed: the format cannot say what the model does, or what was written differs from it; nothing is kept.
    """
    if args.format not in FORMATS:
        raise UserError(
            f"--format {args.format}: no such format.{suggest(args.format, FORMATS)} Known: {', '.join(FORMATS)}."
        )
    check_new_folder(args.output)
    if args.format == "onnx":
        onnx_files.check_packages()
    if args.format == "gguf":
        gguf_files.check_packages()
    with user_mistakes():
        config = read_config(args.model, option="MODEL", trust_remote_code=args.trust_remote_code)
        if args.format == "gguf":
            gguf_files.architecture_of(config, f"MODEL {args.model}")
        model = read_model(args.model, config, args.trust_remote_code)
        tokenizer = _find_tokenizer(args.model, args.trust_remote_code)
    if args.format == "gguf" and packed_layers(model):
        raise UserError(f"MODEL {args.model}: holds packed layers; llama.cpp has none that round what they multiply.")
    facts = write_folder(model, tokenizer, args.model, args.format, Path(args.output))
    for each in facts["files"]:
        print(_line(each))
    print(f"exported: {args.output}")


def read_model(name: str, config, trust_remote_code: bool) -> torch.nn.Module:
    """Read a saved model in float32 with the head that its config.json names; the stack alone where it names none.

    Raises:
        UserError: it cannot be read.
    """
    architecture = (config.architectures or [""])[0]
    head = next((head for head in HEADS if architecture.endswith(f"For{head}")), None)
    auto_class = transformers.AutoModel if head is None else getattr(transformers, f"AutoModelFor{head}")
    return read_weights(
        auto_class, name, config, option="MODEL", trust_remote_code=trust_remote_code, dtype=torch.float32
    )


def write_folder(model, tokenizer, name: str, format: str, output: Path) -> dict[str, Any]:
    """Write a model into a new folder and return what its export.json says.

    The folder is made beside its place and renamed when all of it is there and was compared.

    Raises:
        Failed: as `export`.
    """
    with new_folder(output) as folder:
        if format == "gguf":
            files = [gguf_files.write(model, tokenizer, folder / gguf_files.FILE, name)]
        else:
            files = [_write_program(program, PROGRAMS[format], folder) for program in programs_of(model)]
        facts = {
            "format": format,
            "model": public_name(name),
            "class": type(model).__name__,
            "model_type": model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "files": files,
            "versions": {each: version(each) for each in ("frankenlm", "torch", "transformers", *PACKAGES[format])},
        }
        write_json(folder / REPORT, facts)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return facts


def _write_program(program: Program, kind, folder: Path) -> dict[str, Any]:
    path = folder / f"{program.name}{kind.SUFFIX}"
    say(f"info: {path.name} is written and compared")
    kind.write(program, path)
    difference = largest_difference(program, kind.opened(path, program))
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in program.inputs.items()}
    return {
        "file": path.name,
        "inputs": {name: {"dtype": types[name], "axes": _named(axes)} for name, axes in program.axes.items()},
        "outputs": {name: {"axes": _named(program.output_axes[name])} for name in program.outputs},
        "limits": {of: limit for of, limit in program.limits.items() if limit is not None},
        "largest_relative_difference": difference,
        "tolerance": TOLERANCE,
    }


def _named(axes: dict[int, str]) -> dict[str, str]:
    return {str(at): of for at, of in axes.items()}


def _line(file: dict[str, Any]) -> str:
    """One line of what a file holds and how it was compared."""
    if "largest_relative_difference" not in file:
        return f"{file['file']}: {file['architecture']}, {file['weights']}; {file['vocabulary']}"
    limits = "".join(f", at most {limit} in {of}" for of, limit in file["limits"].items())
    return f"{file['file']}: largest relative difference {file['largest_relative_difference']:.1e}{limits}"


def _find_tokenizer(name: str, trust_remote_code: bool):
    """The tokenizer beside a model; None where there is none."""
    try:
        return read_tokenizer(name, option="MODEL", trust_remote_code=trust_remote_code)
    except UserError:
        return None
