"""YAML files as people write settings: small, and saying each thing where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 18
MOST_LEVELS = 50
"""PyYAML looks at every open level for every token, and recurses."""


class YamlError(ValueError):
    """The file holds no YAML that we take. One line that says what and where."""


class _Loader(yaml.SafeLoader):
    """Takes aliases of text and numbers alone: of lists they can nest without end, or grow beyond any memory."""

    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            if not isinstance(self.anchors.get(alias.anchor, ""), str | yaml.ScalarNode):
                problem = f"*{alias.anchor} stands for a list or for keys and values: write them out"
                raise yaml.composer.ComposerError(None, None, problem, alias.start_mark)
        if self.levels == MOST_LEVELS:
            raise YamlError(f"it nests deeper than {MOST_LEVELS} levels")
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def read_yaml(path: Path) -> Any:
    """Return what the file says, of plain types, or None where it is empty. Raise OSError, YamlError."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise YamlError(f"it is larger than {MOST_BYTES} bytes")
    try:
        return yaml.load(data, _Loader)  # noqa: S506 - a SafeLoader
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        # Beside its own errors PyYAML lets through what Python says of odd numbers, dates and tags.
        raise YamlError(" ".join(str(error).split()) or type(error).__name__) from error
