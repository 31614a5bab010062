"""Names, order, shapes and types of two networks' tensors held against each other, in words."""

from __future__ import annotations

from typing import Any

from core.contract import Session, TensorSpec


def differing_layout(original: Session, artifact: Session) -> list[str]:
    """Names, order, shapes and types of the tensors; carried state is told apart, for its rows are kept in stores."""
    findings = []
    state = {spec.name for spec in original.inputs} & {spec.name.removeprefix("new_") for spec in original.outputs}
    for kind, true, given in (
        ("input", original.inputs, artifact.inputs),
        ("output", original.outputs, artifact.outputs),
    ):
        by_name = {spec.name: spec for spec in given}
        for spec in true:
            what = "state layout" if spec.name.removeprefix("new_") in state else f"{kind}s"
            if spec.name not in by_name:
                findings.append(f"{what}: the artifact lacks {spec.name}")
            elif _shape(by_name[spec.name]) != _shape(spec):
                findings.append(f"{what}: {spec.name} is {_words(by_name[spec.name])}, the original has {_words(spec)}")
        findings += [
            f"{kind}s: the artifact has {name}, which the original lacks"
            for name in by_name.keys() - {spec.name for spec in true}
        ]
        order = [spec.name for spec in true]
        if not findings and [spec.name for spec in given] != order:
            what = "state layout" if state & set(order) else f"{kind}s"
            findings.append(
                f"{what}: the {kind}s come in the order {', '.join(by_name)}, the original's in {', '.join(order)}"
            )
    return findings


def _shape(spec: TensorSpec) -> tuple[Any, ...]:
    return tuple(axis if isinstance(axis, int) else "free" for axis in spec.shape), spec.dtype


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
