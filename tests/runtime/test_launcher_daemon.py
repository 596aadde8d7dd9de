"""A launcher's daemon that outlives an abort is ended, politely first; one that ends by itself, and what is no daemon, is left alone."""

import os
import subprocess

import pytest

from mpidml.runtime import launcher_daemon

DEAF = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"


@pytest.fixture(autouse=True)
def of_one_job(monkeypatch):
    monkeypatch.setenv("PMIX_NAMESPACE", "prterun-host-4711@1")


@pytest.fixture
def start(tmp_path):
    """Start a shell under the name of a daemon."""
    children = []

    def begin(name, script):
        (tmp_path / name).symlink_to("/bin/sh")
        children.append(subprocess.Popen([tmp_path / name, "-c", script], stdout=subprocess.PIPE, text=True))
        assert children[-1].stdout.readline()
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("name", launcher_daemon.DAEMONS)
def test_a_daemon_that_stays_is_ended(start, name):
    child = start(name, "echo up; while :; do sleep 0.1; done")
    assert launcher_daemon.end_later(child.pid, 0.2)
    assert child.wait(30) == -15


def test_one_that_does_not_listen_is_killed(start):
    child = start("prterun", DEAF)
    assert launcher_daemon.end_later(child.pid, 0.0)
    assert child.wait(30) == -9


def test_one_that_ends_by_itself_keeps_its_code(start):
    child = start("prted", "echo up; sleep 0.3; exit 7")
    assert launcher_daemon.end_later(child.pid, 20.0)
    assert child.wait(30) == 7


@pytest.mark.parametrize("namespace", ["prte-host-4711@3", ""])
def test_a_daemon_that_serves_other_jobs_too_is_left_alone(start, monkeypatch, namespace):
    """Under `prte` each job is started by prun and named after the daemon of them all."""
    child = start("prted", DEAF)
    monkeypatch.setenv("PMIX_NAMESPACE", namespace)
    assert not launcher_daemon.end_later(child.pid, 0.0) and child.poll() is None


def test_what_is_no_daemon_is_left_alone(start):
    child = start("worker", DEAF)
    assert not launcher_daemon.end_later(child.pid, 0.0) and not launcher_daemon.end_later()
    assert not launcher_daemon.end_later(2**22 + 1)
    assert child.poll() is None and os.getppid()
