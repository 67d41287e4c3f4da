"""scripts/analyze_run.py behind its flags: a run's folder read, a table printed, and the three files written."""

import argparse

from ..analysis.figure import plot_analysis
from ..analysis.run_analysis import analyse, text_table
from ..common.cli import check_new_file
from ..common.files import replaced_file, write_csv, write_json

FILES = TABLE, JSON, FIGURE = ("analysis.csv", "analysis.json", "analysis.png")


def analyze(args: argparse.Namespace) -> None:
    """Analyse a run as scripts/analyze_run.py's flags say.

    Raises:
        UserError: the folder is none of a run, or the files cannot be written.
    """
    output_dir = args.output_dir or args.run
    analysis = analyse(args.run)
    for name in FILES:
        check_new_file("--output_dir", output_dir / name)
    print(text_table(analysis))
    output_dir.mkdir(parents=True, exist_ok=True)
    facts = {"seconds": analysis.seconds, "steps": analysis.steps, "source": analysis.source}
    write_csv(output_dir / TABLE, analysis.table())
    write_json(output_dir / JSON, {**facts, "parts": analysis.table(), "notes": list(analysis.notes)})
    name = args.run.resolve().name
    with replaced_file(output_dir / FIGURE) as scratch:
        plot_analysis(analysis, scratch, title=f"{name}: {analysis.seconds:,.1f} s, {analysis.steps:,} steps")
    print(f"analysis: {output_dir / FIGURE}")
