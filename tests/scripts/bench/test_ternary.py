"""scripts/bench/ternary.py and the modules below it: the limit by hand, a tiny run with every key, the mistakes."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from frankenlm.kernels.build import NoCompilerError, compiler
from frankenlm.scripts.bench import suite as bench_suite
from frankenlm.scripts.bench import ternary as script_module
from frankenlm.scripts.bench.cells import (
    LONGEST_CELL,
    MOST_ROUNDS,
    BenchCell,
    Roofline,
    Timing,
    interleave,
    limit,
    plan,
    relative_error,
    rows_of,
    takes_part,
)
from frankenlm.scripts.bench.contestants import TORCH_KINDS, Weights, int8_linear_of_torch, torch_contestant
from frankenlm.scripts.bench.library import BenchLibrary, Places, Times, ternary_problem
from frankenlm.scripts.bench.suite import INSTRUCTIONS, NOT_VECTORISED, PEERS, Selection, Suite
from frankenlm.scripts.bench.tables import tables_of
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.common.timing import write_report

CELL = BenchCell(inputs=64, outputs=48, tokens=2, threads=1, memory="cache")
ROW_KEYS = {
    "contestant", "inputs", "outputs", "tokens", "threads", "memory", "us", "p20_us", "p80_us", "wall_us", "rounds",
    "calls", "gops", "limit_us", "limit_set_by", "share_of_limit", "share_of_own_limit", "times_TQ2_0", "times_int8",
    "noise",
}  # fmt: skip


@pytest.fixture(scope="module")
def library() -> BenchLibrary:
    try:
        compiler()
    except NoCompilerError as error:
        pytest.skip(str(error))
    return BenchLibrary()


def timing(seconds: float) -> Timing:
    return Timing(median=seconds, p20=seconds, p80=1.5 * seconds, wall=seconds, rounds=3, calls=1)


@pytest.mark.parametrize(
    ("weight_bytes", "products", "bandwidth", "peak", "expected"),
    [
        (4_194_304, 16_777_216, 29e9, 236.5e9, (144.6e-6, "bandwidth")),  # 4096x4096 at M=1 from DRAM
        (4_194_304, 16_777_216, 98e9, 236.5e9, (70.9e-6, "instruction")),  # from the third cache
        (4_194_304, 32 * 16_777_216, 29e9, 236.5e9, (2270e-6, "instruction")),
        (1000, 10**9, 1e9, None, (1e-6, "bandwidth")),  # no instruction measured
    ],
)
def test_limit_by_hand(weight_bytes, products, bandwidth, peak, expected):
    found = limit(weight_bytes, products, bandwidth, peak)
    assert found.seconds == pytest.approx(expected[0], rel=1e-3)
    assert found.set_by == expected[1]


def test_roofline_takes_the_better_way_of_reading_and_the_best_instruction():
    timings = {
        "read 1 stream": timing(1e-10),
        "read 4 streams": timing(5e-11),
        "peak vpdpbusd zmm": timing(1e-12),
        "peak vpmaddubsw ymm": timing(4e-12),
    }
    roofline = Roofline.from_timings(timings)
    assert roofline.bytes_per_second == pytest.approx(2e10)
    many = replace(CELL, tokens=64)
    assert roofline.limit(many).seconds == pytest.approx(64 * 64 * 48 * 1e-12)
    assert roofline.limit(many, "vpmaddubsw ymm").seconds == pytest.approx(64 * 64 * 48 * 4e-12)
    one = replace(CELL, tokens=1)
    assert roofline.limit(one).seconds == pytest.approx(64 * 48 / 4 * 5e-11)
    assert roofline.limit(one).set_by == "bandwidth"


def test_rows_by_hand():
    roofline = Roofline(1e12, {"vpdpbusd zmm": 1e9, "vpmaddubsw ymm": 5e8})
    seconds = {"avx2": 2e-5, "ggml TQ2_0": 6e-5, "torch int8": 4e-5}
    rows = rows_of(CELL, {name: timing(value) for name, value in seconds.items()}, roofline, INSTRUCTIONS)
    ours = rows[0]
    assert set(ours) == ROW_KEYS
    assert ours["limit_us"] == pytest.approx(2 * 64 * 48 / 1e9 * 1e6)
    assert ours["share_of_limit"] == pytest.approx(6.144e-6 / 2e-5)
    assert ours["share_of_own_limit"] == pytest.approx(2 * 6.144e-6 / 2e-5)
    assert ours["times_TQ2_0"] == pytest.approx(3) and ours["times_int8"] == pytest.approx(2)
    assert ours["gops"] == pytest.approx(2 * 2 * 64 * 48 / 2e-5 / 1e9)
    assert ours["noise"] == pytest.approx(0.5)
    assert rows[1]["share_of_own_limit"] is None
    alone = rows_of(CELL, {"avx2": timing(1e-5)}, roofline, INSTRUCTIONS)[0]
    assert alone["times_TQ2_0"] is None and alone["times_int8"] is None


class Sleeper:
    """A contestant whose calls take what they are told to."""

    def __init__(self, seconds: float, name: str = "", log: list | None = None):
        self.seconds, self.name, self.log = seconds, name, log if log is not None else []

    def run(self, calls: int):
        self.log.append(self.name)
        return Times(self.seconds * calls, self.seconds * calls / 2), calls


@pytest.mark.parametrize("seconds", [1e-7, 1e-4, 1e-2, 0.3, 1.9, 30.0])
@pytest.mark.parametrize("budget", [0.01, 0.2, 2.0])
def test_a_contestant_stays_within_its_time(seconds, budget):
    chosen = plan(Sleeper(seconds), budget, in_cache=True)
    spent = chosen.calls * chosen.rounds * seconds
    assert 1 <= chosen.rounds <= MOST_ROUNDS
    assert spent <= max(LONGEST_CELL, seconds) * 1.01
    assert spent <= max(budget, 3 * 2e-3, 3 * seconds) * 1.01


@pytest.mark.parametrize(("rounds", "total"), [(3, 25), (1, 7), (7, 7), (10, 25)])
def test_turns_are_spread(rounds, total):
    turns = [number for number in range(total) if takes_part(number, rounds, total)]
    assert len(turns) == rounds and turns[-1] == total - 1
    gaps = [b - a for a, b in zip(turns, turns[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_rounds_are_interleaved_and_one_thread_is_counted_in_processor_time():
    log: list[str] = []
    contestants = {name: Sleeper(2e-3, name, log) for name in ("a", "b", "c")}
    timings = interleave(contestants, threads=1, in_cache=False, budget=0.02)
    turns = log[-3 * timings["a"].rounds :]
    assert turns == ["a", "b", "c"] * timings["a"].rounds
    assert timings["b"].median == pytest.approx(1e-3) and timings["b"].wall == pytest.approx(2e-3)
    two = interleave({"a": Sleeper(2e-3)}, threads=2, in_cache=False, budget=0.02)
    assert two["a"].median == pytest.approx(2e-3)
    assert torch.get_num_threads() == 1


# torch's compiler, which transformers' layer imports, warns of torch's own code
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", [kind for kind in TORCH_KINDS if kind != "BitLinear as shipped"])
def test_torch_peers_compute_the_product(kind):
    weights, x = Weights(48, 64, distinct_bytes=0), torch.randn(3, 64)
    contestant = torch_contestant(kind, x, weights)
    contestant.run(2)
    assert relative_error(contestant.output(), x @ weights.dense().t()) < 0.03


def test_int8_of_torch_against_its_own_arithmetic():
    weight = torch.randint(-1, 2, (5, 32), dtype=torch.int8)
    x = torch.randn(4, 32)
    step = x.abs().amax(1, keepdim=True).double() / 127
    expected = (x / step).round() * step @ weight.double().t() * 0.02
    torch.testing.assert_close(int8_linear_of_torch(x, weight).double(), expected, rtol=1e-4, atol=1e-5)


def test_copies_fill_the_memory_asked_for():
    places = Weights(33, 17, distinct_bytes=3000).packed()
    assert len(places) == 8  # 3 x 2 tiles of 64 bytes: 384 each
    assert len({tensor.data_ptr() for tensor in places.tensors}) == 8


@pytest.mark.slow  # the C loop is a build of its own
def test_every_path_in_the_c_loop_computes_the_product(library):
    weights, x = Weights(33, 77, distinct_bytes=5000), torch.randn(3, 77)
    expected = x @ weights.dense().t()
    for path in (name for name, available in library.paths().items() if available):
        y = torch.empty(3, 33)
        problem = ternary_problem(path, x, weights.packed(), weights.scale, y)
        times = library.time_ternary(problem, 5, 2)
        assert relative_error(y, expected) < 0.03, path
        assert times.wall > 0


@pytest.mark.slow  # the C loop is a build of its own
@pytest.mark.slow  # compiles everything once more
def test_plain_code_is_slower_without_vectors(library):
    selection = Selection(
        shapes=[(256, 256)], tokens=[8], threads=[1], memory=["cache"], paths=["scalar", NOT_VECTORISED], peers=[]
    )
    plain, not_vectorised = Suite(selection).run().products
    assert not_vectorised["us"] > 1.5 * plain["us"]


@pytest.mark.slow  # the C loop is a build of its own
def test_the_c_loop_names_a_path_that_is_not_there(library):
    weights, x = Weights(16, 16, distinct_bytes=0), torch.randn(1, 16)
    problem = ternary_problem("avx1024", x, weights.packed(), weights.scale, torch.empty(1, 16))
    with pytest.raises(RuntimeError, match="avx1024"):
        library.time_ternary(problem, 0, 1)


def test_a_problem_of_wrong_shapes_is_refused():
    weights = Weights(16, 16, distinct_bytes=0)
    with pytest.raises(ValueError, match="packed weights"):
        ternary_problem("scalar", torch.randn(1, 32), weights.packed(), weights.scale, torch.empty(1, 16))
    with pytest.raises(ValueError, match="x's dtype"):
        ternary_problem("scalar", torch.randn(1, 16), weights.packed(), weights.scale, torch.empty(2, 16))
    with pytest.raises(ValueError, match="contiguous"):
        ternary_problem("scalar", torch.randn(16, 2).t(), weights.packed(), weights.scale, torch.empty(2, 16))


@pytest.mark.slow  # the C loop is a build of its own
def test_loops_count_what_they_do(library):
    for instruction in library.instructions():
        if instruction.available:
            once, many = (library.time_peak(instruction, turns)[1] for turns in (1, 1000))
            assert many == 1000 * once > 0
    places = Places([torch.zeros(4096 + 100, dtype=torch.uint8) for _ in range(3)])
    for four_streams in (False, True):
        assert library.time_read(places, 2, 5, four_streams)[1] == 5 * 4096


@pytest.mark.parametrize(
    ("cell", "full", "expected"),
    [
        (CELL, False, ["avx512_vnni", "avx2", "torch int8", "ggml TQ2_0"]),
        (replace(CELL, tokens=8), False, ["avx512_vnni", "avx2", "scalar", "torch int8", "ggml TQ2_0"]),
        (replace(CELL, tokens=1), False, ["avx512_vnni", "avx2", "scalar", "torch int8", "ggml TQ2_0", "ggml TQ1_0"]),
        (
            replace(CELL, memory="dram"),
            True,
            ["avx512_vnni", "avx2", "scalar", "torch int8", "BitLinear as shipped", "ggml TQ2_0", "ggml TQ1_0"],
        ),
    ],
)
def test_who_meets_where(cell, full, expected):
    peers = ["torch int8", "BitLinear as shipped", "ggml TQ2_0", "ggml TQ1_0"]
    selection = Selection(paths=["avx512_vnni", "avx2", "scalar"], peers=peers, full=full)
    assert selection.contestants(cell) == expected


def test_paths_meet_themselves_with_scales_of_groups():
    selection = Selection(paths=["avx2", NOT_VECTORISED], peers=["torch int8"], groups=True, full=True)
    assert selection.contestants(CELL) == ["avx2", NOT_VECTORISED, "torch int8", "avx2 of groups"]


def test_a_full_selection_has_every_cell():
    assert len(list(Selection(full=True).cells())) == 5 * 7 * 2 * 2
    assert len(list(Selection().cells())) == 5 * 2 * (7 + 1)


@pytest.mark.slow  # the C loop is a build of its own
def test_a_wrong_result_stops_the_suite(library, monkeypatch):
    monkeypatch.setattr(bench_suite, "LARGEST_ERROR", 1e-6)
    with pytest.raises(RuntimeError, match="wrong by"):
        Suite(Selection(shapes=[(64, 48)], tokens=[1], threads=[1], memory=["cache"], paths=["scalar"], peers=[])).run()


@pytest.mark.slow  # the C loop is a build of its own
def test_slow_contestants_are_left_out_with_a_reason(library, monkeypatch):
    monkeypatch.setattr(bench_suite, "LONGEST_CELL", 1e-9)
    selection = Selection(
        shapes=[(64, 48)],
        tokens=[1, 2],
        threads=[1],
        memory=["cache"],
        paths=["scalar"],
        peers=["torch fp32", "ggml TQ2_0"],
        full=True,
        seconds=0.01,
    )
    results = Suite(selection).run()
    assert {row["tokens"] for row in results.products if row["contestant"] == "scalar"} == {1}
    reasons = {(row["contestant"], row["tokens"]): row["reason"] for row in results.left_out}
    assert reasons["ggml TQ2_0", 1] == "no ggml library"
    assert "a call would take" in reasons["scalar", 2]


@pytest.fixture(scope="module")
def main():
    return script_module.main


@pytest.mark.slow  # the C loop is a build of its own
def test_a_tiny_run_writes_everything(library, main, tmp_path):
    output, record = tmp_path / "o" / "ternary.json", tmp_path / "record.md"
    paths = [name for name, available in library.paths().items() if available]
    words = ["--shapes", "64x48", "--tokens", 1, 8, "--threads", 1, "--memory", "cache", "--seconds", 0.005]
    words += ["--output", output, "--record", record, "--peers", "torch fp32", "torch int8", "--paths", *paths]
    words += ["--groups"]
    assert run_command(main, list(map(str, words))) == 0
    report = json.loads(output.read_text())
    for tokens in (1, 8):
        rows = [row for row in report["products"] if row["tokens"] == tokens]
        of_groups = [f"{path} of groups" for path in paths]
        assert [row["contestant"] for row in rows] == [*paths, "torch fp32", "torch int8", *of_groups]
        assert all(set(row) == ROW_KEYS and row["us"] > 0 and row["share_of_limit"] > 0 for row in rows)
    assert all(row["read 1 stream, GB/s"] > 0 for row in report["roofline"])
    assert len(report["roofline"]) == 2 and report["left_out"] == []
    overhead = report["tables"]["Call of the operator, M=1, 1 thread"]
    assert [row["inputs x outputs"] for row in overhead] == ["16x16", "768x768"]
    with output.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(report["products"])
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "### M=8, weights from cache, 1 thread" in record.read_text()


@pytest.mark.slow  # the C loop is a build of its own
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "768"], "--shapes 768: write inputs x outputs"),
        (["--shapes", "0x16"], "--shapes 0x16"),
        (["--paths", "avx3"], "--paths='avx3' is not known. Did you mean 'avx2'"),
        (["--peers", "onednn"], "--peers='onednn' is not known"),
        (["--memory", "disk"], "--memory='disk' is not known"),
        (["--tokens", "0"], "--tokens 0: at least 1"),
        (["--seconds", "5"], "--seconds 5.0: between 0 and 2"),
        (["--ggml_lib", "/nowhere"], "holds no libggml-cpu.so"),
        (["--ik_lib", "/nowhere"], "holds no libggml.so"),
        (["--tokns", "1"], "unknown argument '--tokns'. Did you mean '--tokens'"),
    ],
)
def test_mistakes(library, main, words, message, tmp_path, capfd):
    output = tmp_path / "o.json"
    assert run_command(main, ["--output", str(output), *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not output.exists()


def test_tables_by_hand():
    roofline = Roofline(1e12, {"vpdpbusd zmm": 1e9})
    products = []
    for threads, seconds in ((1, 4e-5), (2, 2.5e-5)):
        cell = replace(CELL, threads=threads)
        times = {"sse41": seconds, "scalar": 3 * seconds, NOT_VECTORISED: 8 * seconds, "ggml TQ2_0": 2 * seconds}
        products += rows_of(cell, {name: timing(value) for name, value in times.items()}, roofline, INSTRUCTIONS)
    tables = tables_of(products, [{"a": 1}, {"b": 2}], [])
    assert tables["Roofline, measured in the same rounds"] == [{"a": 1, "b": "-"}, {"a": "-", "b": 2}]
    assert [row["64x48"] for row in tables["Threads: sse41, times faster than on one thread"]] == [pytest.approx(1.6)]
    plain = tables["SSE4.1 against plain C++, times faster"][0]
    assert plain["plain C++ at -O3"] == pytest.approx(3) and plain["plain C++, not vectorised"] == pytest.approx(8)
    cells = next(rows for title, rows in tables.items() if title.startswith("M=2, weights from cache, 1 thread:"))
    assert [row[""] for row in cells] == ["limit", "sse41", "scalar", NOT_VECTORISED, "ggml TQ2_0"]
    assert cells[1]["64x48"] == "40 (2x, 15.4%)"
    assert "Left out" not in tables
    missing = [{"contestant": "ggml Q4_0", "reason": "no ggml library"}] * 3
    assert tables_of(products, [], missing)["Left out"][0]["cells"] == 3


def test_report_holds_data_that_no_table_shows(tmp_path):
    text = write_report("t", {"a": [{"x": 1}]}, tmp_path / "r.json", None, {"rows": [3]})
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows"] == [3] and report["tables"] == {"a": [{"x": 1}]} and "rows" not in text


def test_peers_are_all_named():
    assert {"torch fp32", "torch bf16", "torch int8", "ggml TQ2_0", "ggml TQ1_0", "ggml Q4_0", "ik IQ2_BN"} <= set(
        PEERS
    )
