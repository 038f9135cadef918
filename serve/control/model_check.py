"""What a model file needs besides itself, read by a throw-away process: a hostile file meets only that process."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

from cache.manifest import Manifest
from serve.core.errors import FilesMissing, ModelInvalid, load_failure

CHECK_TIMEOUT_S = 120.0


async def check_model(folder: Path, file: str, engine: str, manifest: Manifest) -> None:
    """Raise FilesMissing where external data is not in `manifest`, ModelInvalid where the file is no model.

    Other engines than onnx have models of one file; what is wrong with them shows when they are loaded.
    """
    if engine != "onnx":
        return
    found = await _inspect(folder, file)
    error = found.get("error")
    if error is not None:
        raise load_failure(str(error["code"]), str(error["message"]))
    known = {entry.path for entry in manifest.files}
    missing = [path for path in found["external"] if path not in known]
    if missing:
        raise FilesMissing(
            f"{file} keeps weights in other files that were not sent: {', '.join(missing[:5])}; deploy it from the "
            "folder that has them",
            files=missing,
        )


async def _inspect(folder: Path, file: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "runtime.engines.onnx_files", str(folder), file),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            output, _ = await process.communicate()
        found: dict[str, Any] = json.loads(output)
    except TimeoutError:
        raise ModelInvalid(f"{file} could not be read within {CHECK_TIMEOUT_S:.0f} s; export it again") from None
    except ValueError:
        raise ModelInvalid(
            f"{file} could not be read as a model: its reader ended with status {process.returncode}; export it again"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return found
