"""What is told of the runtime on this CPU."""

from __future__ import annotations

import pytest

from requant.runtime import cpu_kind, saturates


@pytest.mark.parametrize(
    ("arch", "features", "kind"),
    [
        ("x86_64", ["avx2"], "avx2"),
        ("x86_64", ["avx2", "avx512"], "avx2"),
        ("x86_64", ["avx2", "avxvnni"], "vnni"),
        ("x86_64", ["avx2", "avx512", "avx512vnni"], "vnni"),
        ("aarch64", ["neon"], None),
    ],
)
def test_kinds_of_cpus_are_told_by_their_features(
    arch: str, features: list[str], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requant.ops.cpu_info", lambda: {"arch": arch, "features": features})
    assert cpu_kind() == kind
    assert saturates() == (kind == "avx2")
