"""An engine for tests: answers inputs × factor, and fails as its script says. The model file is a JSON object.

========== ========================== ================================================================================
key        default                    meaning
========== ========================== ================================================================================
tensors    one pair x → y, FP32 [-1,4] `[{"input", "output", "datatype", "shape"}]`: each output answers its input
batchable  true                       joins rows of requests, where all shapes begin with -1
factor     1                          output = input × factor, in the datatype of the tensor; BYTES are never changed
load_s     0                          seconds that loading takes
memory_mib 0                          memory touched and held from loading on
load_error none                       `{"code", "message"}`: loading fails with it
load_exit  none                       the process ends with this status while loading
run_s      0                          seconds that every run takes
row_s      0                          seconds that every row of a run takes in addition
on_value   {}                         `{"13": action}`: what happens to a run in which any row of a numeric input begins
                                      with that value: raise, reject, exit, abort, kill, hang, slow, starve
slow_s     1                          seconds that the action slow takes, once a run
once       none                       path of a file: the actions happen only where it does not exist, and create it
override   none                       path of a file with keys that count instead of these, where it exists at loading
========== ========================== ================================================================================
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.engines.base import (
    DATATYPES,
    Array,
    EngineError,
    InputRejected,
    Loaded,
    LoadOrder,
    ModelInvalid,
    TensorSpec,
)

EXIT_STATUS = 7
"""Of the action `exit`."""

_DEFAULTS: dict[str, Any] = {
    "tensors": [{"input": "x", "output": "y", "datatype": "FP32", "shape": [-1, 4]}],
    "batchable": True,
    "factor": 1,
    "load_s": 0,
    "memory_mib": 0,
    "load_error": None,
    "load_exit": None,
    "run_s": 0,
    "row_s": 0,
    "on_value": {},
    "slow_s": 1,
    "once": None,
    "override": None,
}


class ScriptedEngine:
    """Plays a script. Owned by the replica's main thread."""

    def __init__(self) -> None:
        self._script = _DEFAULTS
        self._pairs: dict[str, str] = {}
        self._actions: dict[float, str] = {}
        self._held = b""

    def load(self, order: LoadOrder) -> Loaded:
        self._script = script = _read(Path(order.model_dir, order.model_file))
        mapped_ns = time.monotonic_ns()
        time.sleep(script["load_s"])
        if script["load_exit"] is not None:
            os._exit(script["load_exit"])
        if script["load_error"] is not None:
            error = EngineError(script["load_error"]["message"])
            error.code = script["load_error"]["code"]
            raise error
        self._held = b"\x01" * (script["memory_mib"] << 20)
        self._actions = {float(value): action for value, action in script["on_value"].items()}
        tensors = script["tensors"]
        self._pairs = {tensor["output"]: tensor["input"] for tensor in tensors}
        return Loaded(
            platform="scripted",
            version="1",
            inputs=tuple(TensorSpec(t["input"], t["datatype"], tuple(t["shape"])) for t in tensors),
            outputs=tuple(TensorSpec(t["output"], t["datatype"], tuple(t["shape"])) for t in tensors),
            batchable=script["batchable"] and all(tensor["shape"][:1] == [-1] for tensor in tensors),
            mapped_ns=mapped_ns,
        )

    def run(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        for name, array in inputs.items():
            if self._actions and array.size and array.dtype.kind != "O":
                for value in set(array.reshape(array.shape[0] if array.ndim else 1, -1)[:, 0].tolist()):
                    if value in self._actions:
                        self._act(self._actions[value], f"input '{name}' begins with {value}")
        rows = max((len(array) for array in inputs.values() if array.ndim), default=1)
        time.sleep(self._script["run_s"] + rows * self._script["row_s"])
        return {name: self._answer(inputs[self._pairs[name]]) for name in outputs}

    def close(self) -> None:
        self._held = b""

    def _answer(self, array: Array) -> Array:
        factor = self._script["factor"]
        if factor == 1 or array.dtype.kind in "Ob":
            return array
        scaled: Array = (array * factor).astype(array.dtype)
        return scaled

    def _act(self, action: str, why: str) -> None:
        once = self._script["once"]
        if once is not None:
            try:
                Path(once).touch(exist_ok=False)
            except FileExistsError:
                return
        if action == "reject":
            raise InputRejected(f"the script rejects it: {why}")
        if action == "raise":
            raise ValueError(f"the script fails: {why}")
        if action == "exit":
            os._exit(EXIT_STATUS)
        if action == "abort":
            os.abort()
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "slow":
            time.sleep(self._script["slow_s"])
            return
        if action == "starve":
            raise MemoryError
        while True:  # hang
            time.sleep(3600)


_ACTIONS = frozenset({"raise", "reject", "exit", "abort", "kill", "hang", "slow", "starve"})


def _read(path: Path) -> dict[str, Any]:
    try:
        written = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"'{path.name}' is not a script: {error}") from error
    if not isinstance(written, dict):
        raise ModelInvalid(f"'{path.name}' is not a script: it must be a JSON object")
    script = _DEFAULTS | written
    if script["override"] is not None and Path(script["override"]).exists():
        script |= json.loads(Path(script["override"]).read_bytes())
    if unknown := script.keys() - _DEFAULTS.keys():
        raise ModelInvalid(f"unknown keys in the script '{path.name}': {', '.join(sorted(unknown))}")
    if wrong := {tensor["datatype"] for tensor in script["tensors"]} - DATATYPES.keys():
        raise ModelInvalid(f"unknown datatypes in the script '{path.name}': {', '.join(sorted(wrong))}")
    if wrong := set(script["on_value"].values()) - _ACTIONS:
        raise ModelInvalid(f"unknown actions in the script '{path.name}': {', '.join(sorted(wrong))}")
    return script
