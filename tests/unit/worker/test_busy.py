"""Overlapping work counts once."""

from charter.worker.clients.busy import BusyClock


def test_overlapping_work_counts_once() -> None:
    time = 0.0
    clock = BusyClock(lambda: time)
    assert clock.seconds() == 0
    with clock.busy():
        time = 1.0
        with clock.busy():
            time = 3.0
            assert clock.seconds() == 3
        time = 4.0
    time = 10.0
    assert clock.seconds() == 4
    with clock.busy():
        time = 11.5
        assert clock.seconds() == 5.5
