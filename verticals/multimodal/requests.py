"""What the multimodal service is asked, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from core.serving.uploads import Upload

MOST_FOUND = 1000
ItemId = Annotated[str, Field(min_length=1, max_length=200, description="Names the item.")]
Sentence = Annotated[str, Field(min_length=1, max_length=10_000)]
PICTURE = "PNG, JPEG, TIFF, BMP, WebP or GIF; any depth and colour, turned as Exif says."


class NewPicture(Upload):
    """A picture to index."""

    picture: Path = Field(description=PICTURE)
    id: ItemId | None = Field(None, description="The first digits of the file's sha256 where left out.")
    caption: str | None = Field(None, max_length=4000, description="What is said of it; it is found by that too.")
    metadata: str | None = Field(None, description="A JSON object, given back with what is found.")
    replace: bool = Field(False, description="Whether it takes the place of the item of this id.")


class Archive(Upload):
    """Many pictures to index."""

    archive: Path = Field(
        description="A tar of webdataset: KEY.jpg, and KEY.txt or KEY.json where there are words; the key is the id, the first caption counts."
    )
    replace: bool = Field(False, description="Whether they take the places of the items of their ids.")


class PictureQuery(Upload):
    """A picture to search by."""

    picture: Path = Field(description=PICTURE)
    count: int = Field(10, ge=1, le=MOST_FOUND)


class SoundQuery(Upload):
    """A sound to search by."""

    sound: Path = Field(description="WAV of any rate and depth, up to ten minutes.")
    count: int = Field(10, ge=1, le=MOST_FOUND)


class Pair(Upload):
    """A picture and a sentence."""

    picture: Path = Field(description=PICTURE)
    text: Sentence


class LabelledPicture(Upload):
    """A picture, and what it may be."""

    picture: Path = Field(description=PICTURE)
    labels: str = Field(description='A JSON list, as ["cat", "dog"], or labels with commas between.')
    template: str = Field("a photo of a {}", max_length=1000, description="A sentence with {} where a label goes.")


class TextQuery(BaseModel):
    """A sentence to search by."""

    text: Sentence
    count: int = Field(10, ge=1, le=MOST_FOUND)


class Ids(BaseModel):
    """Names items."""

    ids: list[ItemId] = Field(min_length=1, max_length=10_000)


class ItemOf(BaseModel):
    """Names an item."""

    id: ItemId


class Page(BaseModel):
    """Which ids, in alphabetical order."""

    count: int = Field(100, ge=1, le=MOST_FOUND)
    after: str = Field("", max_length=200)


class Indexed(BaseModel):
    """What was indexed."""

    id: str
    replaced: bool
    caption_cut: bool = Field(description="Whether the caption had more tokens than the model reads.")
    items: int = Field(description="In the index now.")
    version: str


class Refused(BaseModel):
    """A picture of an archive that was left out."""

    id: str
    reason: str


class ArchiveIndexed(BaseModel):
    """What became of an archive."""

    indexed: int
    replaced: int
    refused: int
    reasons: list[Refused] = Field(description="Of the first hundred that were refused.")
    items: int
    version: str


class Found(BaseModel):
    """An item that is like the question."""

    id: str
    score: float = Field(
        description="Cosine, 1 is the same; where a text asks and the model has a matching head, mixed with what that says."
    )
    metadata: dict[str, Any]


class Answer(BaseModel):
    """The most like it, the best first."""

    hits: list[Found]
    items: int
    version: str
    text_cut: bool = Field(description="Whether the text had more tokens than the model reads.")
    seconds: float


class Matched(BaseModel):
    """Whether a picture and a sentence belong together."""

    score: float = Field(description="How alike they are, -1 to 1.")
    chance: float = Field(description="That they do, where as many pairs do as do not.")
    belongs: bool = Field(description="Whether that is more likely than not.")
    text_cut: bool
    version: str


class Share(BaseModel):
    """A label, and how much of the picture's chance is its."""

    label: str
    chance: float
    score: float


class Classified(BaseModel):
    """All labels, the likeliest first."""

    labels: list[Share]
    version: str


class Deleted(BaseModel):
    """What is left."""

    items: int


class ItemTold(BaseModel):
    """What is kept of an item."""

    id: str
    metadata: dict[str, Any]
    has_picture: bool


class Listing(BaseModel):
    """Ids, and how many items there are."""

    ids: list[str]
    items: int
    version: str
