"""Scalars of YAML files, read alike in specs, constitutions and settings: numbers as YAML 1.2 has them.

PyYAML reads YAML 1.1, where `1e3` is text, `010` is eight and `1:30` is ninety.
"""

import re
from typing import Any

import yaml

_NUMBERS = {
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+$"), "-+0123456789"),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
        "-+.0123456789",
    ),
}


class Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` with the numbers of YAML 1.2's core schema (section 10.3.2)."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _NUMBERS.items():
    Loader.add_implicit_resolver(_tag, _pattern, list(_first))
Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(node.value))


def value_of(node: yaml.Node) -> Any:
    """The value of a scalar node; None for anything else."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return Loader("").construct_object(node)
    except (ValueError, yaml.YAMLError):
        return None
