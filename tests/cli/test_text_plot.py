from minitron_cli.cli.text_plot import HEIGHT, WIDTH, Point, scatter


def test_points_stand_where_they_belong():
    lines = scatter([Point(0, 1.0, "a"), Point(10, 3.0, "b"), Point(5, 2.0, "c")], "{:g}p".format, "{:.1f}".format)
    body = [line.partition("|")[2] for line in lines[:HEIGHT]]
    assert body[0] == " " * (WIDTH - 1) + "b", "the largest y is on top"
    assert body[-1] == "a"
    row = next(i for i, line in enumerate(body) if "c" in line)
    assert abs(row - HEIGHT / 2) <= 1
    assert abs(body[row].index("c") - WIDTH / 2) <= 1
    assert lines[0].startswith("3.0 |")
    assert lines[HEIGHT - 1].startswith("1.0 |")
    assert lines[-1].split() == ["0p", "10p"]


def test_points_in_one_place_and_the_last_is_seen():
    lines = scatter([Point(1, 1, "a"), Point(1, 1, "b")], str, str)
    assert sum(line.count("b") for line in lines) == 1
    assert not any("a" in line for line in lines)
