"""`python -m tests.fuzz TARGET|all --seconds N`: search on, guided by coverage (atheris, on libFuzzer).

Each target runs in a process of its own. What it finds worth keeping lies in `.fuzz/corpus/TARGET`, so that the next
run begins there; an input that breaks the contract is written to `.fuzz/crashes/TARGET`, with the command that repeats
it. `python -m tests.fuzz TARGET FILE` runs one input, without atheris.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fuzz"
_INPUT_S = 20
"""One input may take so long."""
_MEMORY_MIB = 2048
_MOST_BYTES = 1 << 16


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz a parser, or repeat one input.")
    parser.add_argument("target", help="a target's name, or `all`; `list` names them")
    parser.add_argument("file", nargs="?", type=Path, help="run this input alone")
    parser.add_argument("--seconds", type=int, default=60, help="of searching in all; every target gets its part")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return _fuzz(options.target, options.seconds)
    from tests.fuzz.targets import TARGETS

    names = list(TARGETS) if options.target in ("all", "list") else [options.target]
    if options.target == "list":
        print("\n".join(names))
        return 0
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"no target is called {unknown[0]}: there are {', '.join(TARGETS)}")
        return 2
    if options.file is not None:
        TARGETS[names[0]].one_input(options.file.read_bytes())
        print(f"{options.target}: handled {options.file}")
        return 0
    if not _has_atheris():
        print(
            "atheris is not installed: it has wheels for CPython 3.11 to 3.13 on x86-64 Linux; there, run `make setup`"
        )
        return 1
    seconds = max(1, options.seconds // len(names))
    broken = [name for name in names if _search(TARGETS[name], seconds)]
    if options.target == "all":
        broken += _with_processes()
    print(f"{len(names)} targets, {seconds} s each: " + (f"broken: {', '.join(broken)}" if broken else "nothing broke"))
    return 1 if broken else 0


def _has_atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def _search(target: Target, seconds: int) -> bool:
    """Return whether it broke."""
    corpus, crashes = FOLDER / "corpus" / target.name, FOLDER / "crashes" / target.name
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(crashes.iterdir())
    for data in (*target.seeds, *(path.read_bytes() for path in target.corpus())):
        (corpus / sha256(data).hexdigest()[:40]).write_bytes(data)
    _write_dictionary(target, FOLDER / f"{target.name}.dict")
    command = [sys.executable, "-m", "tests.fuzz", target.name, "--inside", "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    runs = [line for line in done.stderr.splitlines() if line.startswith(("Done ", "stat::number_of_executed_units"))]
    print(f"{target.name}: {runs[-1] if runs else f'ended with status {done.returncode}'}", flush=True)
    new = sorted(set(crashes.iterdir()) - known)
    for path in new:
        print(f"{done.stdout[-3000:]}{done.stderr[-3000:]}\nrepeat it with: python -m tests.fuzz {target.name} {path}")
    if done.returncode and not new:
        print(done.stdout[-3000:], done.stderr[-3000:])
    return bool(done.returncode)


def _with_processes() -> list[str]:
    """Run the tests that fuzz whole processes with more examples than `make test`. Return what broke."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "tests/fuzz", "--timeout", "900"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"FUZZ_EXAMPLES": "200"}, check=False)
    return ["whole processes"] if done.returncode else []


def _write_dictionary(target: Target, path: Path) -> None:
    lines = ["".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens if 0 < len(token) <= 64]
    path.write_text("".join(f'"{line}"\n' for line in lines))


def _fuzz(name: str, seconds: int) -> int:
    """Search in this process, which libFuzzer ends."""
    import atheris

    packages = ["activator", "billing", "cache", "runtime", "serve", "yaml", "pytimeparse2", "tests.fuzz"]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    flags = {
        "max_total_time": seconds,
        "timeout": _INPUT_S,
        "rss_limit_mb": _MEMORY_MIB,
        "max_len": _MOST_BYTES,
        "artifact_prefix": f"{FOLDER / 'crashes' / name}/",
    }
    arguments = [f"-{key}={value}" for key, value in flags.items()]
    if target.tokens:
        arguments.append(f"-dict={FOLDER / name}.dict")
    atheris.Setup([sys.argv[0], *arguments, str(FOLDER / "corpus" / name)], target.one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
