from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from core.errors import DataError
from tests.verticals.medical.answers import LABELS, ORIENTATIONS, grid_of, mask_on, scan_on
from verticals.medical.labels import structures
from verticals.medical.preview import write_preview
from verticals.medical.volume import Axes, Grid, Volume

STRUCTURES = structures(LABELS)


def painted(path, number: int) -> np.ndarray:
    """[points, 2] x and y, from 0 to 1, of the picture's pixels in a structure's colour over soft tissue; not its legend."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)[: int(0.8 * 540)]
    grey = 255 * (60 + 160) / 400
    expected = [0.5 * part + 0.5 * grey for part in STRUCTURES[number - 1].color]
    rows, columns = np.nonzero(np.abs(picture - expected).max(-1) < 6)
    return np.column_stack([columns / picture.shape[1], rows / 540])


@pytest.mark.parametrize("name", ["axial", "feet first", "coronal", "sagittal"])
def test_the_patients_right_is_on_the_left_and_the_head_is_up(tmp_path, name):
    grid = grid_of(name)
    mask = mask_on(grid, {1: ((20.0, 6.0, 12.0), 9.0), 2: ((-18.0, -2.0, 4.0), 13.0)})
    write_preview(Volume(np.full(grid.shape, 60, np.int16), grid), mask, STRUCTURES, tmp_path / "p.png")
    right, left = painted(tmp_path / "p.png", 1), painted(tmp_path / "p.png", 2)
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3)):  # axial and coronal
        one, two = (ball[(ball[:, 0] > low) & (ball[:, 0] < high)].mean(0) for ball in (right, left))
        assert one[0] < two[0] - 0.05
        assert one[1] < two[1] - 0.01  # in front, and higher
    width, height = np.ptp(left[left[:, 0] < 1 / 3], axis=0) * [1200, 540]
    assert width == pytest.approx(height, rel=0.15)  # 2 x 2.5 x 3 mm voxels, and a round ball


def test_however_a_scan_is_stored_the_picture_is_the_same(tmp_path):
    grid = grid_of("axial")
    scan, mask = scan_on(grid), mask_on(grid)
    write_preview(scan, mask, STRUCTURES, tmp_path / "first.png")
    expected = np.asarray(Image.open(tmp_path / "first.png"))
    ways = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
    for order, flips in ways[5::11]:
        axes = Axes(order, flips)
        write_preview(scan.turned(axes), mask.turned(axes), STRUCTURES, tmp_path / "p.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), expected)


def test_nothing_but_geometry_is_in_the_file(tmp_path):
    grid = grid_of("oblique")
    write_preview(scan_on(grid), mask_on(grid), STRUCTURES, tmp_path / "p.png")
    picture = Image.open(tmp_path / "p.png")
    assert set(picture.info) <= {"Software", "dpi"}
    red = np.asarray(picture.convert("RGB")).astype(int)[:40]
    assert ((red[..., 0] > 200) & (red[..., 1] < 60)).any()  # the notice


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_an_empty_mask_shows_the_middle(tmp_path, name):
    grid = grid_of(name)
    write_preview(scan_on(grid), Volume(np.zeros(grid.shape, np.uint8), grid), STRUCTURES, tmp_path / "p.png")
    assert (np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))[100:400] > 100).any()


def test_names_that_look_like_formulas_and_many_structures(tmp_path):
    grid = Grid((30, 20, 4), np.diag([-1.0, -1.0, 3.0, 1.0]))
    array = np.zeros(grid.shape, np.uint8)
    array[:, :, 1].reshape(-1)[:40] = np.arange(1, 41)
    names = {f"_$x^{number}" * 8: number for number in range(1, 41)}
    write_preview(
        Volume(np.zeros(grid.shape, np.int16), grid), Volume(array, grid), structures(names), tmp_path / "p.png"
    )
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_only_the_planes_of_the_scan_are_read(tmp_path):
    grid = Grid((700, 600, 500), np.diag([-1.0, -1.0, 1.0, 1.0]))
    scan = Volume(np.broadcast_to(np.int16(40), grid.shape), grid)  # a copy would take 400 MB
    mask = Volume(np.broadcast_to(np.uint8(0), grid.shape), grid)
    tracemalloc.start()
    write_preview(scan, mask, STRUCTURES, tmp_path / "p.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_scan_and_mask_on_two_grids(tmp_path):
    with pytest.raises(DataError, match="not on one grid"):
        write_preview(scan_on(grid_of("axial")), mask_on(grid_of("coronal")), STRUCTURES, tmp_path / "p.png")
