"""Commands of the project as real processes, forked from a server that has imported PyTorch and timm.

A process that starts from nothing spends seconds on these imports, so what a command starts in Python, such
as its workers, is forked from it in turn. Tests of the imports themselves and of the
variables that Python reads at its start need such a process: `subprocess`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from tests.helpers.forks import fork_python, open_streams, run_python
from tests.helpers.processes import SERVER


def _become(words: list[str], cwd: str, environment: dict[str, str], files: list[Any], session: bool) -> None:
    """Runs `python WORDS` in this process."""
    for number, file in enumerate(files, 1):
        os.dup2(file.detach(), number)
    open_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fork_python()
    run_python(words, cwd, environment, session)


class Command:
    """A command at work, with what `subprocess.Popen` offers; its output goes to files, or to `terminal`."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        terminal: int | None = None,
    ) -> None:
        interpreter, *rest = words
        assert interpreter == sys.executable
        self.args = list(words)
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        numbers = [file.fileno() for file in self._files]
        descriptors = [DupFd(number) for number in (terminal or numbers[0], numbers[1])]
        environment = dict(os.environ if env is None else env)
        given = (rest, str(cwd or Path.cwd()), environment, descriptors, start_new_session)
        self._process = SERVER.Process(target=_become, args=given)
        self._process.start()

        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired if it takes longer."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed and its error output, at its end."""
        self.wait(timeout)
        return self.printed(), self.printed(1)

    def printed(self, number: int = 0) -> str:
        """The output so far, or the error output."""
        size = os.fstat(self._files[number].fileno()).st_size
        return os.pread(self._files[number].fileno(), size, 0).decode()

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """The output so far, once it holds `text`; AssertionError if it never does."""
        end = time.monotonic() + timeout
        while text not in self.printed():
            assert self.poll() is None or text in self.printed(), self.printed(1)
            assert time.monotonic() < end, self.printed() + self.printed(1)
            time.sleep(0.01)
        return self.printed()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str],
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with `capture_output` and `text`."""
    command = Command(words, cwd, env)
    try:
        out, err = command.communicate(timeout)
    except BaseException:
        command.kill()
        raise
    done = subprocess.CompletedProcess(command.args, command.wait(), out, err)
    if check:
        done.check_returncode()
    return done
