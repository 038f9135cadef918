"""What `serve --help` costs, beside its floor: a bare typer program with one command. `python -m benchmarks.cli_help`.

Runs alternate, so that both see the same machine. The bound is 1.3 × the floor (medians of wall time).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 31
BOUND = 1.3
BARE = """import typer

app = typer.Typer()


@app.command()
def hello(name: str, loud: bool = False) -> None:
    \"\"\"Greet somebody.\"\"\"


@app.command()
def bye(name: str) -> None:
    \"\"\"Leave.\"\"\"


app()
"""
OURS = "import sys; from serve.cli.main import main; sys.exit(main())"


def elapsed_ms(command: list[str]) -> float:
    start_ns = time.perf_counter_ns()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter_ns() - start_ns) / 1e6


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        floor = [sys.executable, "-P", str(bare), "--help"]
        ours = [sys.executable, "-P", "-c", OURS, "--help"]
        for command in (floor, ours):
            elapsed_ms(command)
        pairs = [(elapsed_ms(floor), elapsed_ms(ours)) for _ in range(ROUNDS)]
    floor_ms, ours_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = ours_ms / floor_ms
    print("| | median ms |")
    print("|---|---|")
    print(f"| bare typer program, `--help` | {floor_ms:.0f} |")
    print(f"| `serve --help` | {ours_ms:.0f} |")
    print(f"\n{ratio:.2f} × the floor (bound {BOUND}), {ROUNDS} alternating runs")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
