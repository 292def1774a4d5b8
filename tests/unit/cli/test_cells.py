"""Figures as cells of a table."""

from charter.cli.evaluation.cells import chance


def test_a_chance_that_no_draw_or_every_draw_showed_is_not_certain() -> None:
    shown = [chance(share) for share in (0.0, 0.004, 0.01, 0.25, 0.99, 0.9995, 1.0)]
    assert shown == ["<1%", "<1%", "1%", "25%", "99%", ">99%", ">99%"]
