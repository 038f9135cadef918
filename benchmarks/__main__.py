"""All benchmarks of the platform, one after the other: what `make bench` runs."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.models import ROOT

PARTS = ("cli_help", "cold_start", "hot_path", "idle")

if __name__ == "__main__":
    failed = []
    for part in PARTS:
        print(f"\n## {part}\n", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], cwd=ROOT).returncode:
            failed.append(part)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
