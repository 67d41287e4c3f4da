"""The exported kernel: complete by itself, loaded by Hugging Face's library `kernels` where that is installed."""

import json
import os

import pytest

from forking import ForkServer
from frankenlm.kernels import build, hub

USE = """
assert not [name for name in sys.modules if name.partition(".")[0] == "frankenlm"]
codes = torch.randint(-1, 2, (33, 50), dtype=torch.int8)
packed, scale, x = kernel.pack_ternary(codes), torch.rand(33), torch.randn(4, 50)
y = kernel.ternary_linear(x, packed, scale, 33)
assert torch.equal(y, kernel.reference.ternary_linear(x, packed, scale, 33))
assert torch.equal(kernel.unpack_ternary(packed, 33, 50), codes)
grouped = (x, packed, kernel.pack_group_scales(torch.rand(33, 2), torch.float16), 33)
of_groups = kernel.ternary_linear(*grouped, group_size=32)
assert torch.equal(of_groups, kernel.reference.ternary_linear(*grouped, group_size=32))
assert torch.equal(y, kernel.ternary_linear_quantized(*kernel.quantize_activations(x), packed, scale, 33))
assert torch.equal(torch.compile(kernel.ternary_linear, backend="aot_eager", fullgraph=True)(x, packed, scale, 33), y)
weight = torch.randint(-128, 128, (33, 50), dtype=torch.int8)
assert torch.equal(kernel.int8_linear(x, weight, scale), kernel.reference.int8_linear(x, weight, scale))
assert all(hasattr(kernel, name) for name in kernel.__all__)
print("used")
"""
PLAIN = """
import importlib.util
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("kernel", folder + "/__init__.py", submodule_search_locations=[folder])
kernel = sys.modules["kernel"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
THROUGH_THE_LIBRARY = """
import pathlib, kernels
kernel = kernels.get_local_kernel(pathlib.Path(sys.argv[1]).parents[1])
"""


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """The export, compiled without optimisation: a third of the time, and the same numbers."""
    compile_library = hub.compile_library
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub, "compile_library", lambda *words: compile_library(*words[:-1], [*words[-1], "-O0"]))
            return hub.export(tmp_path_factory.mktemp("kernel"))
    except build.NoCompilerError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def run(variant, tmp_path_factory):
    """run(code) runs it in a process of its own, whose first word is the variant's folder."""
    place = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place)}
    with ForkServer("import torch", env=environment) as server:
        yield lambda code: server.run(code, variant, cwd=place)


def test_a_mac_is_named_as_the_library_names_it(monkeypatch):
    monkeypatch.setattr(hub.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(hub.platform, "system", lambda: "Darwin")
    assert hub.variant_name() == "torch-stable-abi210-cpu-aarch64-darwin"


def test_the_kernel_is_complete_by_itself(run):
    done = run(PLAIN + USE)
    assert done.returncode == 0 and done.stdout == "used\n", done.stderr


def test_kernels_loads_it_from_its_folder(run):
    if run("import kernels; kernels.get_local_kernel").returncode:
        pytest.skip("the library `kernels` is not installed")
    done = run(THROUGH_THE_LIBRARY + USE)
    assert done.returncode == 0 and done.stdout == "used\n", done.stderr


def test_metadata_and_name(variant):
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cpu"} and metadata["license"] == "Apache-2.0"
    assert variant.name.startswith("torch-stable-abi210-cpu-") and variant.parent.name == "build"
    assert (variant / f"_{metadata['id']}.abi3.so").is_file()


def test_an_export_is_not_written_over(variant):
    with pytest.raises(FileExistsError, match="is there already"):
        hub.export(variant.parents[1])


def test_it_lives_beside_an_installed_frankenlm(run):
    both = """
from frankenlm.modeling.native_ops import native_path
assert native_path()
import torch
from frankenlm.modeling.ternary import pack_ternary
codes = torch.ones(3, 4, dtype=torch.int8)
arguments = torch.ones(1, 4), pack_ternary(codes), torch.ones(3), 3
assert torch.equal(kernel.ternary_linear(*arguments), torch.ops.frankenlm.ternary_linear(*arguments))
"""
    done = run(PLAIN + both)
    assert done.returncode == 0, done.stderr
