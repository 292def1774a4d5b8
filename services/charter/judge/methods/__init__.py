"""The judging methods, one file each: how the model is asked, what it finds, and how that is read."""

from collections.abc import Mapping

from charter.judge.methods import choice, contrast, mix, verdict
from charter.judge.methods.method import Method
from charter.v1 import judge_pb2

_ALL = (choice.METHOD, verdict.METHOD, contrast.METHOD, mix.METHOD, choice.REASONED)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def method_of(number: judge_pb2.JudgingMethod.ValueType, reasons: bool) -> Method:
    """The method of this name in the contract. Raises ``KeyError``: not every method can reason first."""
    return {(method.number, method.reasons): method for method in _ALL}[number, reasons]
