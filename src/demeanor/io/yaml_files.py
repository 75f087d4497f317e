"""YAML as behaviours and plans are written: no key twice, and no more values than the text shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which may take in several mappings
SPARE = 10_000  # values that aliases may add to those that are written


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        counts = Counter(key for key in keys if not isinstance(key, (list, dict, set)))  # such keys are refused below
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]!r} is given twice", problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node)
        return self.construct_document(node)


def read_yaml(text: str) -> Any:
    """The value that a YAML text holds. Raises ValueError, in one line, for what is none."""
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (LookupError, TypeError, AttributeError) as error:  # PyYAML's own, of a value that is not what its tag says
        raise ValueError(f"a value is not what its tag says ({' '.join(str(error).split())[:100]})") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or a number that is none is a ValueError
        raise ValueError(" ".join(str(error).split()).replace('in "<unicode string>", ', "")[:300]) from error


def _refuse_bomb(root: yaml.Node) -> None:
    """An alias stands for all that it names, so a few lines could hold more values than a machine has room for."""
    sizes: dict[int, int] = {}
    held = _size(root, sizes, set())
    if held > len(sizes) + SPARE:
        raise yaml.MarkedYAMLError(
            problem=f"its aliases stand for {held if held < 10**9 else 'billions of'} values; write out what is needed", problem_mark=root.start_mark
        )


def _size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node holds, with those of its aliases; `sizes` keeps what is known of each, by identity."""
    key = id(node)
    if key in above:
        raise yaml.MarkedYAMLError(problem="an alias stands for something that it is itself a part of", problem_mark=node.start_mark)
    if key not in sizes:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        below = {*above, key} if children else above
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        sizes[key] = 1 + sum(_size(part, sizes, below) for part in parts)
    return sizes[key]
