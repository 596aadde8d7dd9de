"""What goes wrong in a look ends no job."""

import sys
import threading

from mpidml.runtime import sites
from mpidml.runtime.watchdog import Watchdog


def test_a_place_is_told_though_the_working_folder_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert "test_watchdog.py" in sites.site(sys._getframe())


def test_a_look_that_fails_is_told_once_and_the_next_one_is_made(monkeypatch, capfd):
    died, ended, went_on, n = [], [], threading.Event(), 0

    def tick(self, now):
        nonlocal n
        n += 1
        if n < 3:
            raise OSError("too many open files")
        went_on.set()

    monkeypatch.setattr(threading, "excepthook", died.append)
    monkeypatch.setattr(Watchdog, "tick", tick)
    monkeypatch.setattr(Watchdog, "tick_seconds", 0.01)
    Watchdog(ended.append, lambda: "[rank 0/2]")
    assert went_on.wait(20) and not died and not ended
    assert capfd.readouterr().err.count("a look at the other ranks failed (OSError: too many open files)") == 1
