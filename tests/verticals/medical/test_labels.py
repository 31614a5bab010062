from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from core.errors import ConfigError, DataError
from verticals.medical import labels
from verticals.medical.labels import ABNORMALITY, Structure, coded, structures, uncoded, words

SCT = codes.SCT


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("Brainstem", SCT.BrainStem, None),
        ("SpinalCord", SCT.SpinalCord, None),
        ("spinal_cord", SCT.SpinalCord, None),
        ("RightParotid", SCT.ParotidGland, "right"),
        ("Parotid_L", SCT.ParotidGland, "left"),
        ("Mandible", SCT.Mandible, None),
        ("liver", SCT.Liver, None),
        ("Spleen", SCT.Spleen, None),
        ("kidney_left", SCT.Kidney, "left"),
        ("LKidney", SCT.Kidney, "left"),
        ("lungs", SCT.Lung, None),
        ("lung_upper_lobe_right", SCT.UpperLobeOfLung, "right"),
        ("lung_middle_lobe_right", SCT.MiddleLobeOfRightLung, None),
        ("heart", SCT.Heart, None),
        ("heart_atrium_left", SCT.LeftAtrium, None),
        ("aorta", SCT.Aorta, None),
        ("urinary_bladder", SCT.Bladder, None),
        ("pancreas", SCT.Pancreas, None),
        ("stomach", SCT.Stomach, None),
        ("lymph_node", SCT.LymphNode, None),
        ("tumor", SCT.Neoplasm, None),
        ("vertebrae_L5", SCT.L5Vertebra, None),
        ("vertebrae_T12", SCT.T12Vertebra, None),
        ("C1", SCT.C1Vertebra, None),
        ("thyroid_gland", SCT.Thyroid, None),
        ("Glnd_Submand_R", SCT.SubmandibularGland, "right"),
    ],
)
def test_names_of_common_training_sets_have_the_standards_codes(name, code, side):
    found, found_side = coded(name)
    assert found is not None
    assert (found.value, found.scheme_designator, found_side) == (code.value, "SCT", side)


def test_ribs_and_what_the_dictionary_lacks():
    assert coded("rib_left_1") == (labels.Code("48535007", "SCT", "First rib"), "left")
    assert coded("rib_right_12")[0].meaning == "Twelfth rib"
    # the dictionary's own Radius is half of a diameter, not the bone
    assert SCT.Radius.value == "131190003"
    assert coded("radius_left")[0].value == "62413002"


def test_every_code_of_ours_has_the_check_digit_of_snomed_and_every_alias_is_a_word_of_the_dictionary():
    assert all(labels._check_digit(value) for value, _ in labels._LACKING.values())
    assert all(labels._word(keyword) is not None for keyword in labels._ALIASES.values())
    assert not set(labels._LACKING) & set(labels._ALIASES)


def test_the_check_digit_is_that_of_all_codes_of_the_dictionary():
    values = list(labels._meanings())
    assert len(values) > 5000
    assert sum(not labels._check_digit(value) for value in values) <= 1  # pydicom 3.0.2 has one with a typing error


@given(st.integers(0, 7), st.integers(1, 9))
def test_a_mistyped_digit_is_found(place, shift):
    digits = list("119238007")
    digits[place] = str((int(digits[place]) + shift) % 10)
    assert not labels._check_digit("".join(digits))


def test_names_without_a_code_are_listed_and_keep_their_side():
    known = structures({"background": 0, "Cochlea_L": 2, "ptv": 3, "liver": 1, "ignore": 9})
    assert [one.number for one in known] == [1, 2, 3]
    assert known[1] == Structure(2, "Cochlea_L", None, "left")
    assert uncoded(known) == ("Cochlea_L", "ptv")


def test_given_codes_take_the_place_of_names():
    known = structures(
        {"A": 1, "B_left": 2, "C": 3}, {"A": "2748008", "B_left": "SCT:64033007:Kidney of someone", "C": "SCT:91723000"}
    )
    assert known[0].code is not None
    assert (known[0].code.value, known[0].code.meaning) == ("2748008", SCT.SpinalCord.meaning)
    assert known[1].code is not None
    assert (known[1].code.meaning, known[1].side) == ("Kidney of someone", "left")
    assert uncoded(known) == ()


def test_findings_and_organs_differ_in_category():
    organ, finding, tissue = structures({"liver": 1, "tumor": 2, "skeletal_muscle": 3})
    assert organ.category.meaning == "Anatomical Structure"
    assert finding.category == ABNORMALITY
    assert tissue.category.meaning == "Tissue"


def test_words():
    assert words("RightParotid") == ["right", "parotid"]
    assert words("vertebrae_L1") == ["vertebra", "l1"]
    assert words("GTV-T 2") == ["gtv", "t", "2"]
    assert words("portal_vein_and_splenic_vein") == ["portal", "vein", "and", "splenic", "vein"]


@pytest.mark.parametrize(
    ("given_labels", "says"),
    [
        ({"liver": 70000}, "1 to 65535"),
        ({"liver": -1}, "1 to 65535"),
        ({"liver": 1, "spleen": 1}, "both the number 1"),
        ({"whole": [1, 2]}, "one whole number, not a region"),
        ({"liver": True}, "one whole number"),
        ({"liver": 0}, "0 is the background's"),
        ({"background": 3}, "0 is the background's"),
        ({"background": 0}, "at least one structure"),
        ({"": 1}, "printable ASCII"),
        ({"a\\b": 1}, "without backslash"),
        ({" liver": 1}, "no space at the ends"),
        ({"Rückenmark": 1}, "printable ASCII"),
        ({"x" * 65: 1}, "1 to 64"),
    ],
)
def test_labels_that_cannot_be(given_labels, says):
    with pytest.raises(DataError, match=says):
        structures(given_labels)


@pytest.mark.parametrize("code", ["2748009", "liver", "FMA:123456", "SCT:", "123", "SCT:2748008:a:b"])
def test_codes_that_cannot_be(code):
    with pytest.raises(ConfigError, match="no SNOMED CT code"):
        structures({"liver": 1}, {"liver": code})


def test_a_code_for_a_name_that_is_not_there():
    with pytest.raises(ConfigError, match=r"\['spleen'\], which are no labels; allowed are \['liver'\]"):
        structures({"liver": 1}, {"spleen": "78961009"})


def test_colors_differ_between_neighbours():
    colors = [Structure(number, "x").color for number in range(1, 118)]
    assert len(set(colors)) == len(colors)
    apart = [max(abs(a - b) for a, b in zip(one, two, strict=True)) for one, two in pairwise(colors)]
    assert min(apart) > 60
