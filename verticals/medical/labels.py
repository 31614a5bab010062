"""What a mask's numbers mean: names of a training set's labels to SNOMED CT codes and sides.

The codes come from pydicom's copy of the DICOM standard; `_LACKING` holds what it has no word for (as TotalSegmentator's
public table gives them). A name is taken apart into words, so "SpinalCord", "spinal_cord" and "Spinal cord" are one.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

from core.errors import ConfigError, DataError

Side = Literal["left", "right"]

ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
"""Category of organs, and the type of a structure whose name has no known code."""
ABNORMALITY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
TISSUE = Code("85756007", "SCT", "Tissue")
SIDES: dict[Side, Code] = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}

NOT_STRUCTURES = ("background", "ignore")
"""Names in an nnU-Net dataset.json that no answer holds."""
MAX_NAME = 64
"""Characters of a segment's label in DICOM."""

_ANATOMICAL_CONTEXTS = (3010, 4028, 4031, 7152, 7153, 7154, 7155, 7156, 7160, 7166, 7171, 7192, 7600, 7602, 8134, 9514)
"""Context groups of the standard (PS3.16) whose concepts are places in the body; other words of the dictionary mislead:
its `Radius` is half of a diameter."""
_ABNORMAL_CONTEXTS = (7159, 7168, 7194)
_TISSUES = {"55603005", "67769002", "127954009"}

_SIDES: dict[str, Side] = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
_ALIASES = {
    "airway": "Trachea",
    "brainstem": "BrainStem",
    "parotid": "ParotidGland",
    "submandibular": "SubmandibularGland",
    "glnd submand": "SubmandibularGland",
    "bone mandible": "Mandible",
    "cavity oral": "OralCavity",
    "optic nrv": "OpticNerve",
    "chiasm": "OpticChiasm",
    "oesophagus": "Esophagus",
    "adrenal": "AdrenalGland",
    "thyroid gland": "Thyroid",
    "pituitary gland": "Pituitary",
    "lung upper lobe": "UpperLobeOfLung",
    "lung lower lobe": "LowerLobeOfLung",
    "lung middle lobe right": "MiddleLobeOfRightLung",
    "small bowel": "SmallIntestine",
    "urinary bladder": "Bladder",
    "heart atrium left": "LeftAtrium",
    "heart atrium right": "RightAtrium",
    "heart ventricle left": "LeftVentricle",
    "heart ventricle right": "RightVentricle",
    "iliac artery": "CommonIliacArtery",
    "iliac vena": "CommonIliacVein",
    "clavicula": "Clavicle",
    "femur head": "FemoralHead",
    "costal cartilages": "CostalCartilage",
    "fat": "AdiposeTissue",
    "lymph node": "LymphNode",
    "ln": "LymphNode",
    "tumour": "Neoplasm",
    "tumor": "Neoplasm",
    "cancer": "Neoplasm",
    "gtv": "Neoplasm",
    "liver tumor": "Neoplasm",
    "kidney cyst": "Cyst",
    "kidney tumor": "Neoplasm",
    "pancreas tumor": "Neoplasm",
    "lung tumor": "Neoplasm",
}
"""Words without their side -> keyword of the dictionary. Where the code itself holds the side, the words hold it too."""
_LACKING = {
    "atrial appendage": ("68786006", "Auricular appendage"),
    "autochthon": ("244849004", "Deep muscle of back"),
    "gluteus maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus medius": ("78333006", "Gluteus medius muscle"),
    "gluteus minimus": ("75297007", "Gluteus minimus muscle"),
    "heart myocardium": ("74281007", "Myocardium"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "myocardium": ("74281007", "Myocardium"),
    "portal vein and splenic vein": ("110765007", "Portal vein and splenic vein"),
    "radius": ("62413002", "Radius"),
    "rib 1": ("48535007", "First rib"),
    "rib 2": ("78247007", "Second rib"),
    "rib 3": ("25888004", "Third rib"),
    "rib 4": ("25523003", "Fourth rib"),
    "rib 5": ("15339008", "Fifth rib"),
    "rib 6": ("59558009", "Sixth rib"),
    "rib 7": ("24915002", "Seventh rib"),
    "rib 8": ("5953002", "Eighth rib"),
    "rib 9": ("22565002", "Ninth rib"),
    "rib 10": ("77644006", "Tenth rib"),
    "rib 11": ("58830002", "Eleventh rib"),
    "rib 12": ("43993008", "Twelfth rib"),
    "subcutaneous fat": ("67769002", "Subcutaneous fatty tissue"),
    "vertebra s1": ("65985001", "S1 vertebra"),
}


@dataclass(frozen=True)
class Structure:
    """One label of a mask."""

    number: int
    """Voxels with this value belong to it."""
    name: str
    code: Code | None = None
    """SNOMED CT concept, None where the name says nothing known."""
    side: Side | None = None
    """Which of a pair, where the code does not say it."""

    @property
    def category(self) -> Code:
        """Anatomy, tissue, or something that should not be there."""
        if self.code is not None and self.code.value in _values(_ABNORMAL_CONTEXTS):
            return ABNORMALITY
        return TISSUE if self.code is not None and self.code.value in _TISSUES else ANATOMY

    @property
    def color(self) -> tuple[int, int, int]:
        """Red, green, blue from 0 to 255: the same for the same number everywhere, far from its neighbours'."""
        hue = (self.number * 0.618033988749895) % 1
        saturation = (0.9, 0.55, 0.75)[self.number % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.95)
        return round(red * 255), round(green * 255), round(blue * 255)


def structures(labels: Mapping[str, int], codes: Mapping[str, str] | None = None) -> tuple[Structure, ...]:
    """The structures of a mask, by rising number.

    Args:
        labels: `labels` of a dataset.json: name -> number; background 0 and `ignore` are left out.
        codes: name -> SNOMED CT code where the name's own is not wanted: `2748008`, or `SCT:2748008:Spinal cord`.

    Raises:
        DataError: a number that is none, out of range or given twice; a name that DICOM cannot hold.
        ConfigError: a code for a name that is not there, or one that is no code of SNOMED CT.
    """
    own = codes or {}
    if unknown := sorted(set(own) - set(labels)):
        raise ConfigError(f"codes name {unknown}, which are no labels; allowed are {sorted(labels)}")
    found: dict[int, Structure] = {}
    for name, number in labels.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise DataError(
                f"label {name!r} has the value {number!r}; allowed is one whole number, not a region of several"
            )
        if name in NOT_STRUCTURES or number == 0:
            if (name == "background") != (number == 0):
                raise DataError(f"label {name!r} has the number {number}; 0 is the background's, and only its")
            continue
        if not 1 <= number <= 65535:
            raise DataError(f"label {name!r} has the number {number}; allowed are 1 to 65535")
        if number in found:
            raise DataError(
                f"labels {found[number].name!r} and {name!r} have both the number {number}; each needs its own"
            )
        if (
            not (0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable())
            or "\\" in name
            or name != name.strip()
        ):
            raise DataError(
                f"label {name!r} cannot be written to DICOM; allowed are 1 to {MAX_NAME} printable ASCII characters "
                "without backslash, and no space at the ends"
            )
        code, side = coded(name)
        if name in own:
            code = _given(own[name], name)
            side = side or _side(words(name))[0]
        found[number] = Structure(number, name, code, side)
    if not found:
        raise DataError("the labels hold the background alone; at least one structure is needed")
    return tuple(found[number] for number in sorted(found))


def uncoded(known: tuple[Structure, ...]) -> tuple[str, ...]:
    """Names that go out under the general code of an anatomical structure."""
    return tuple(structure.name for structure in known if structure.code is None)


def coded(name: str) -> tuple[Code | None, Side | None]:
    """Code and side of a name, None where it says neither."""
    whole = words(name)
    if code := _known(" ".join(whole)):
        return code, None
    side, rest = _side(whole)
    if side is not None and (code := _known(" ".join([*rest, side]))):  # the code of this side alone: Left atrium
        return code, None
    return _known(" ".join(rest)), side


def has_side(name: str) -> bool:
    """Whether a name says left or right: Kidney_left, LeftParotid, Parotid_L, and not vertebrae_L1."""
    return any(word in _SIDES for word in words(name))


def words(name: str) -> list[str]:
    """Lower-case words: "RightParotid" -> right parotid, "vertebrae_L1" -> vertebra l1, "rib_left_4" -> rib left 4."""
    parts = re.findall(r"[CTLS]\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [{"vertebrae": "vertebra"}.get(part.lower(), part.lower()) for part in parts]


def _side(parts: list[str]) -> tuple[Side | None, list[str]]:
    """Which side the words name, and the words without it; a name with both, or with none, has none."""
    named = [at for at, part in enumerate(parts) if part in _SIDES]
    if len(named) != 1 or (len(parts[named[0]]) < 3 and named[0] not in (0, len(parts) - 1)):
        return None, parts
    return _SIDES[parts[named[0]]], parts[: named[0]] + parts[named[0] + 1 :]


def _known(phrase: str) -> Code | None:
    if phrase in _LACKING:
        value, meaning = _LACKING[phrase]
        return Code(value, "SCT", meaning)
    if vertebra := re.fullmatch(r"(?:vertebra )?([ctl]\d+)(?: vertebra)?", phrase):
        return _word(f"{vertebra[1].upper()}Vertebra")
    for spelled in (phrase, phrase.removesuffix("s")):
        if spelled in _ALIASES:
            return _word(_ALIASES[spelled])
        code = _word("".join(part.capitalize() for part in spelled.split()))
        if code is not None and code.value in _values(_ANATOMICAL_CONTEXTS) | _values(_ABNORMAL_CONTEXTS):
            return code
    return None


def _word(keyword: str) -> Code | None:
    code = getattr(dictionary.SCT, keyword, None)
    return code if isinstance(code, Code) else None


@cache
def _values(contexts: tuple[int, ...]) -> frozenset[str]:
    """Codes of the standard's context groups."""
    keywords = {keyword for context in contexts for keyword in getattr(dictionary, f"cid{context}").dir()}
    return frozenset(code.value for code in map(_word, keywords) if code is not None)


@cache
def _meanings() -> dict[str, Code]:
    found: dict[str, Code] = {}
    for keyword in dir(dictionary.SCT):
        code = _word(keyword)
        if code is not None and (code.value not in found or len(code.meaning) < len(found[code.value].meaning)):
            found[code.value] = code
    return found


def _given(text: str, name: str) -> Code:
    """A code that a user wrote down.

    Raises:
        ConfigError: not an identifier of SNOMED CT: its last digit guards against mistyped ones.
    """
    match = re.fullmatch(r"(?:SCT:)?(\d{6,18})(?::([^\\:]{1,64}))?", text.strip())
    if match is None or not _check_digit(match[1]):
        raise ConfigError(
            f"code {text!r} of {name!r} is no SNOMED CT code; allowed is 2748008 or SCT:2748008:Spinal cord: mistyped?"
        )
    known = _meanings().get(match[1])
    return Code(match[1], "SCT", match[2] or (known.meaning if known is not None else name))


def _check_digit(number: str) -> bool:
    """Verhoeff's scheme, which SNOMED CT's identifiers follow."""
    rotate = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    state = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place % 8):
            value = rotate[value]
        state = _dihedral(state, value)
    return state == 0


def _dihedral(one: int, two: int) -> int:
    """Product in the symmetries of a pentagon: 0 to 4 turn, 5 to 9 mirror."""
    if one < 5:
        return (one + two) % 5 if two < 5 else 5 + (one + two - 5) % 5
    return 5 + (one - 5 - two) % 5 if two < 5 else (one - two) % 5
