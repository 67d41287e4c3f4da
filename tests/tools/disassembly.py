"""What a compiler made of the inner loops of a library or program: read out of objdump's disassembly."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(\S+)\s*(.*)$")
# x86: jne 10 <f>; ARM: b.ne 10 <f>, cbnz x0, 10 <f>
TARGET = re.compile(r"(?:^|, )([0-9a-f]+)\b <")
JUMP = re.compile(r"j|b\.|b$|cbn?z|tbn?z")
PRODUCT = re.compile(r"v?p(dpbusd|maddubs|maddwd)|[su]dot|smlal|smull")
STACK_VECTOR = re.compile(r"\(%r[sb]p.*%[xyz]mm|%[xyz]mm.*\(%r[sb]p|\bq\d+,.*\[(sp|x29)")

Instructions = list[tuple[int, str, str]]


def functions(library: Path, objdump: str = "objdump") -> dict[str, Instructions]:
    """Return name -> (address, operation, operands) in order."""
    text = subprocess.run(
        [objdump, "--disassemble", "--no-show-raw-insn", "--demangle", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found, current = {}, None
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            current = found.setdefault(match[1], [])
        elif (match := INSTRUCTION.match(line)) and current is not None:
            current.append((int(match[1], 16), match[2], match[3]))
    return found


def inner_loops(instructions: Instructions) -> Iterator[Instructions]:
    """Yield the bodies of loops that contain no other: what lies between a backward jump and its target."""
    jumps = []
    for address, operation, operands in instructions:
        target = TARGET.search(operands)
        if JUMP.match(operation) and target and instructions[0][0] <= int(target[1], 16) <= address:
            jumps.append((int(target[1], 16), address))
    for first, last in jumps:
        if not any(other != (first, last) and first <= other[0] and other[1] <= last for other in jumps):
            yield [part for part in instructions if first <= part[0] <= last]


def vector_spills(code: dict[str, Instructions]) -> tuple[int, dict[str, list[str]]]:
    """Return the number of inner loops of ours that multiply integers, and function -> their vectors on the stack."""
    loops = [
        (name, loop)
        for name, instructions in code.items()
        if "frankenlm" in name and instructions
        for loop in inner_loops(instructions)
        if any(PRODUCT.match(operation) for _, operation, _ in loop)
    ]
    return len(loops), {name: found for name, loop in loops if (found := stack_vectors(loop))}


def stack_vectors(loop: Instructions) -> list[str]:
    """Return the instructions that move a vector to or from the stack."""
    return [f"{operation} {operands}" for _, operation, operands in loop if STACK_VECTOR.search(operands)]
