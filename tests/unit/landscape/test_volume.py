"""Volumes against closed forms, and when they say that they cannot be trusted."""

import math

import pytest
import torch

from minitron_cli.errors import InputError
from minitron_cli.landscape import measure
from minitron_cli.landscape.directions import Coordinates, curvature_scale, filter_scale, moving, norm, plain_scale
from minitron_cli.landscape.volume import Volume, first_radius, log_ball, log_ratio, require_same_dimension

CUTOFF = 0.1


def ellipsoid(n, condition):
    """A quadratic 1/2 w' A w around a point, in a random basis: its loss, its weights and the log of its volume."""
    generator = torch.Generator().manual_seed(n)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(0, math.log10(condition), n, dtype=torch.float64)
    matrix, weights = basis * spectrum @ basis.T, {"w": torch.randn(n, generator=generator, dtype=torch.float64)}
    center = weights["w"].clone()

    def loss():
        moved = weights["w"] - center
        return float(0.5 * moved @ matrix @ moved)

    log_volume = log_ball(n) + n / 2 * math.log(2 * CUTOFF) - 0.5 * float(spectrum.log().sum())
    return loss, weights, log_volume


def volume(loss, weights, directions, scale=None, seed=0):
    at = Coordinates(weights, scale or plain_scale(weights, {}))
    return Volume.of(measure.radii(loss, at, CUTOFF, range(directions), seed), at.dimension, at.log_scale)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "directions"), [(2, 400), (10, 1500)])
def test_a_quadratics_volume_is_that_of_its_ellipsoid(n, directions):
    loss, weights, expected = ellipsoid(n, 4.0)
    found = volume(loss, weights, directions)
    assert found.is_trusted
    assert abs(found.log_volume - expected) / n < 0.02


@pytest.mark.slow
def test_the_closed_form_of_the_tests_is_the_share_of_points_inside():
    loss, weights, expected = ellipsoid(2, 4.0)
    half = 0.5
    points = (torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * half
    center, inside = weights["w"].clone(), 0
    for point in points:
        weights["w"].copy_(center + point)
        inside += loss() <= CUTOFF
    assert math.log(inside / len(points) * (2 * half) ** 2) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("n", "value"), [(1, 2.0), (2, math.pi), (3, 4 * math.pi / 3)])
def test_unit_balls(n, value):
    assert log_ball(n) == pytest.approx(math.log(value))


def test_a_sphere_is_exact_in_any_dimension():
    found = Volume.of([0.5] * 20, 100_000)
    assert found.log_volume == pytest.approx(log_ball(100_000) + 100_000 * math.log(0.5))
    assert found.effective_directions == pytest.approx(20)


def test_many_badly_conditioned_weights_are_not_trusted():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, 3, 1000, dtype=torch.float64)
    units = torch.randn(400, 1000, generator=generator, dtype=torch.float64)
    units /= units.norm(dim=1, keepdim=True)
    found = Volume.of((2 * CUTOFF / (units.square() @ spectrum)).sqrt().tolist(), 1000)
    expected = log_ball(1000) + 500 * math.log(2 * CUTOFF) - 0.5 * float(spectrum.log().sum())
    assert not found.is_trusted
    assert found.log_volume / 1000 < expected / 1000 - 0.3, "the bound is far too low, as the warning says"


def test_a_higher_cutoff_has_a_larger_basin():
    loss, weights, _ = ellipsoid(5, 9.0)
    at = Coordinates(weights, plain_scale(weights, {}))
    small, large = (measure.radii(loss, at, cutoff, range(5), 0) for cutoff in (0.1, 0.2))
    assert all(a < b for a, b in zip(small, large, strict=True))


def test_curvature_gives_the_same_volume_and_more_effective_directions():
    spectrum = torch.logspace(0, 3, 10, dtype=torch.float64)
    weights = {"w": torch.zeros(10, dtype=torch.float64)}
    scale = curvature_scale({"w": spectrum}, plain_scale(weights, {}))
    loss = lambda: float(0.5 * spectrum @ weights["w"].square())  # noqa: E731
    expected = log_ball(10) + 5 * math.log(2 * CUTOFF) - 0.5 * float(spectrum.log().sum())
    plain, scaled = volume(loss, weights, 200), volume(loss, weights, 200, scale)
    assert abs(scaled.log_volume - expected) / 10 < 0.02
    assert scaled.effective_directions > 2 * plain.effective_directions


def test_pruned_weights_and_rows_of_zeros_neither_move_nor_count():
    weights = {"m": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "v": torch.tensor([1.0, 1.0])}
    plain = plain_scale(weights, {"m": torch.tensor([[True, False], [True, True]])})
    scale = filter_scale({"m": torch.tensor([[3.0, 0.0], [0.0, 0.0]]), "v": weights["v"]}, plain)
    torch.testing.assert_close(scale["m"], torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    at = Coordinates(weights, scale)
    assert at.dimension == 3
    direction = at.direction(0, 0)
    assert direction["m"].count_nonzero() == 1
    assert norm({"m": direction["m"] / 3, "v": direction["v"]}) == pytest.approx(1)


def test_directions_are_those_of_their_seed_and_number():
    at = Coordinates({"w": torch.zeros(4)}, {"w": torch.ones(4)})
    assert torch.equal(at.direction(1, 2)["w"], at.direction(1, 2)["w"])
    assert not torch.equal(at.direction(1, 2)["w"], at.direction(1, 3)["w"])
    assert not torch.equal(at.direction(1, 2)["w"], at.direction(2, 2)["w"])


@pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rise", [lambda r: r**2, lambda r: r**8, lambda r: math.inf if r > 1 else r**2 / 2])
def test_the_end_of_a_basin_is_found_from_any_start(rise, start):
    radius = first_radius(rise, 0.4, start)
    assert rise(radius) == pytest.approx(0.4, rel=2e-4)


def test_a_basin_without_end_is_refused():
    with pytest.raises(InputError, match=r"does not rise by 5 within .*: train it first, or use another --cutoff"):
        first_radius(lambda r: min(r, 1.0), 5.0)


def test_volumes_of_unlike_dimension_are_not_compared():
    one, other = Volume.of([1.0, 1.0], 10), Volume.of([1.0, 1.0], 11)
    assert log_ratio(one, one) == 0
    with pytest.raises(InputError, match=r"10 free weights and the other has 11: .* do not compare"):
        log_ratio(one, other)
    with pytest.raises(InputError, match="a has 1 free weights and c has 2"):
        require_same_dimension({"a": 1, "b": 1, "c": 2})


def test_weights_are_back_bit_by_bit_even_after_an_error():
    weights = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    before = weights["w"].clone()

    def fail():
        with moving(weights) as move:
            move({"w": torch.full((50,), 0.1)}, 3.0)
            assert not torch.equal(weights["w"], before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(weights["w"], before)


def test_sharpness_of_a_quadratic_is_known():
    weights = {"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    loss = lambda: float(weights["w"].square().sum())  # noqa: E731
    assert measure.sharpness(loss, weights, {"w": torch.tensor([2.0, 0.0])}, 0.5) == pytest.approx(1.5**2 - 1)
    assert measure.sharpness(loss, weights, {"w": torch.zeros(2)}, 0.5) == 0


def test_the_line_from_a_point_to_itself_is_flat_and_a_hill_is_a_barrier():
    weights = {"w": torch.tensor([-1.0])}
    loss = lambda: 1 - float(weights["w"].square())  # noqa: E731
    flat = measure.line(loss, weights, {"w": weights["w"].clone()}, 5)
    assert len(set(flat)) == 1
    assert measure.barrier(flat) == 0
    hill = measure.line(loss, weights, {"w": torch.tensor([1.0])}, 5)
    assert hill == pytest.approx([0, 0.75, 1, 0.75, 0])
    assert measure.barrier(hill) == pytest.approx(1)
    assert weights["w"].item() == -1
