"""What can be wrong with a saved model: each damage is one change to one file of its folder."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NESTED = "[" * 100_000 + "]" * 100_000
VALUES = [-1, 0, 1e9, 10**30, 0.5, "abc", "", None, [], {}, True, float("nan"), [1] * 1000]


@dataclass(frozen=True)
class Damage:
    """name: what a report calls it; apply(folder) does it."""

    name: str
    apply: Callable[[Path], object]


def damages(model: Path) -> list[Damage]:
    """Return the damages of a model's folder: to every file as bytes, to every value of every JSON file."""
    found = []
    # code that travels along is not run unless --trust_remote_code asks for it
    for path in sorted(path for path in model.iterdir() if path.is_file() and path.suffix != ".py"):
        found += [Damage(f"{path.name}: {name}", change) for name, change in file_damages(path.name)]
        if path.suffix == ".json":
            keys = json.loads(path.read_text(encoding="utf-8"))
            found += [value_damage(path.name, key, value) for key in keys for value in VALUES]
    if (model / "model.safetensors").is_file():
        found += weight_damages()
    return found


def file_damages(name: str) -> list[tuple[str, Callable[[Path], object]]]:
    def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    return [
        ("empty", bytes_of(lambda data: b"")),
        ("cut in half", bytes_of(lambda data: data[: len(data) // 2])),
        ("last byte lost", bytes_of(lambda data: data[:-1])),
        ("garbage", bytes_of(lambda data: bytes(range(256)) * 8)),
        ("zeros", bytes_of(lambda data: bytes(len(data)))),
        ("{}", bytes_of(lambda data: b"{}")),
        ("[]", bytes_of(lambda data: b"[]")),
        ("nested", bytes_of(lambda data: NESTED.encode())),
        ("Latin-1", bytes_of(lambda data: b'{"caf\xe9": 1}')),
        ("a bit flipped early", bytes_of(lambda data: data[:8] + bytes([data[8] ^ 255]) + data[9:])),
        ("missing", lambda folder: (folder / name).unlink()),
        ("a folder", lambda folder: ((folder / name).unlink(), (folder / name).mkdir())),
        ("a link to nothing", lambda folder: ((folder / name).unlink(), (folder / name).symlink_to("nothing"))),
    ]


def value_damage(name: str, key: str, value: object) -> Damage:
    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        data[key] = value
        (folder / name).write_text(json.dumps(data), encoding="utf-8")

    return Damage(f"{name}: {key} = {str(value)[:20]!r}", apply)


def weight_damages() -> list[Damage]:
    """Well-formed files with the wrong tensors."""

    def rewrite(change: Callable[[dict], dict]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            path = folder / "model.safetensors"
            save_file(change(load_file(path)), path, metadata={"format": "pt"})

        return apply

    return [
        Damage("weights: none", rewrite(lambda tensors: {})),
        Damage("weights: one missing", rewrite(lambda tensors: dict(list(tensors.items())[1:]))),
        Damage("weights: all renamed", rewrite(lambda tensors: {f"x.{name}": t for name, t in tensors.items()})),
        Damage("weights: wrong shapes", rewrite(lambda tensors: {name: t.new_zeros(3) for name, t in tensors.items()})),
        Damage("weights: NaN", rewrite(lambda tensors: {name: t.fill_(float("nan")) for name, t in tensors.items()})),
        Damage("weights: int8", rewrite(lambda tensors: {name: t.char() for name, t in tensors.items()})),
        Damage(
            "weights: a pickle", lambda folder: shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
        ),
    ]
