"""The plane through three models: its corners, in units of a scale, and its grid."""

import math

import pytest
import torch

from minitron_cli.errors import InputError
from minitron_cli.landscape import measure
from minitron_cli.landscape.directions import filter_scale, plain_scale
from minitron_cli.landscape.plane import Plane, shares


def three(seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,)}
    return [{name: torch.randn(shape, generator=draw) for name, shape in shapes.items()} for _ in range(3)]


def distance(one, other, scale):
    return math.sqrt(sum(float((((one[n] - other[n]) / scale[n]) ** 2).sum()) for n in one))


@pytest.mark.parametrize("normalized", [False, True])
def test_corners_are_as_far_apart_as_the_models(normalized):
    models = three()
    scale = plain_scale(models[0], {})
    scale = filter_scale(models[0], scale) if normalized else scale
    corners = Plane.through(*models).corners(scale)
    for i in range(3):
        for j in range(i):
            wanted = distance(models[i], models[j], {n: s.expand(models[0][n].shape) for n, s in scale.items()})
            assert math.dist(corners[i], corners[j]) == pytest.approx(wanted, rel=1e-5)


def test_a_row_has_the_values_of_a_function_of_the_weights_and_leaves_them():
    first, second, third = three()
    target = {name: w + 1 for name, w in first.items()}

    def loss():
        return sum(float((first[name] - target[name]).square().sum()) for name in first)

    before = {name: w.clone() for name, w in first.items()}
    for b in (0.0, 0.5, -0.5):
        row = measure.plane_row(loss, first, Plane.through(first, second, third), b, (-1.0, 0.0, 1.0))
        for a, found in zip((-1.0, 0.0, 1.0), row, strict=True):
            at = {n: w + a * (second[n] - w) + b * (third[n] - w) for n, w in before.items()}
            wanted = sum(float((at[n] - target[n]).square().sum()) for n in at)
            assert found == pytest.approx(wanted, rel=1e-5)
    assert all(torch.equal(first[name], w) for name, w in before.items())


def test_models_on_a_line_have_no_plane():
    first, second, _ = three()
    middle = {name: (w + second[name]) / 2 for name, w in first.items()}
    for models in ((first, second, middle), (first, first, second), (first, second, first)):
        with pytest.raises(InputError, match="the three models lie on a line"):
            Plane.through(*models).corners(plain_scale(first, {}))


def test_the_grid_has_the_models_and_half_a_side_beyond():
    assert shares(2) == (-1, 0, 1, 2)
    assert shares(3) == (-0.5, 0, 0.5, 1, 1.5)
    assert shares(5) == (-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)
