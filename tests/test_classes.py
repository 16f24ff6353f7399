"""The literal data of classes.py, pinned against the VOC kit and the papers."""

from __future__ import annotations

from zsseg.classes import ALIASES, UNSEEN_PRESETS, VOC_NAMES


def test_voc_names_are_the_kits_in_index_order() -> None:
    """Class ids in VOC's label maps mean these names, background 0 to tvmonitor 20."""
    expected = (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor"
    )
    assert expected.split() == list(VOC_NAMES)


def test_zs3_presets_are_the_published_nested_lists() -> None:
    """zs3-K adds two classes at a time; ids are those of the ZS3Net paper."""
    ids = {name: index for index, name in enumerate(VOC_NAMES)}
    expected = {2: {10, 14}, 4: {1, 18}, 6: {8, 20}, 8: {19, 5}, 10: {9, 16}}
    so_far: set[int] = set()
    for count, added in expected.items():
        so_far |= added
        preset = UNSEEN_PRESETS[f"zs3-{count}"]
        assert len(preset) == count
        assert {ids[name] for name in preset} == so_far


def test_spnet_preset_is_the_last_five_classes() -> None:
    """SPNet's unseen classes are VOC 16 to 20."""
    assert UNSEEN_PRESETS["spnet"] == VOC_NAMES[16:]


def test_there_are_six_presets() -> None:
    """No further preset appears unnoticed."""
    assert sorted(UNSEEN_PRESETS) == ["spnet", "zs3-10", "zs3-2", "zs3-4", "zs3-6", "zs3-8"]


def test_aliases_are_lower_case_and_never_repeat_their_key() -> None:
    """Names are looked up in lower case, and an alias that repeats the name would be tried twice."""
    for name, aliases in ALIASES.items():
        assert name == name.lower()
        assert name not in aliases
        assert all(alias == alias.lower() for alias in aliases)
