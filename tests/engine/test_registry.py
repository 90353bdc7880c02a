from __future__ import annotations

import sys

import pytest

from livereel.engine import registry
from livereel.engine.errors import CheckpointError


def test_an_unknown_class_is_named_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'UNet2DModel'.*WanTransformer3DModel"):
        registry.resolve("UNet2DModel")


def test_a_row_is_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.CLASSES, "Thing", "wave:Wave_read")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    found = registry.resolve("Thing")
    assert found is sys.modules["wave"].Wave_read


@pytest.mark.parametrize("name", sorted(registry.CLASSES))
def test_every_row_resolves_to_a_module_built_from_a_config(name: str) -> None:
    found = registry.resolve(name)
    assert callable(found.from_config)


def test_every_layout_belongs_to_a_class_of_the_table() -> None:
    found = {layout.class_name for layout in registry.layouts()}
    assert found <= set(registry.CLASSES)
    assert all(registry.layout_of(name) is not None for name in found)
    assert registry.layout_of("UNet2DModel") is None
