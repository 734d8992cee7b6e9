"""Python children that are forked from this process, with its modules, not started from nothing."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from multiprocessing import forkserver, resource_tracker
from types import ModuleType
from typing import Any

EXECUTE: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
GIVEN = (
    *("preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell", *PIPES),
    *("restore_signals", "gid", "gids", "uid", "umask", "start_new_session"),
)
KEPT: list[Any] = []  # streams of the process that was forked, which would be written when they are freed


def fork_python() -> None:
    """From now on, children of this process that run a script, a module or a string of Python are forked."""
    subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]


def run_python(words: list[str], cwd: str, environment: dict[str, str], session: bool) -> None:
    """Runs `python WORDS` in this process."""
    if session:
        os.setsid()
    os.environ.clear()
    os.environ |= environment
    os.chdir(cwd)
    tempfile.tempdir = None  # read from the environment again
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


def open_streams() -> None:
    """Opens the standard streams anew; those that were there may know another kind of file."""
    KEPT.extend((sys.stdin, sys.stdout, sys.stderr))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def server_files() -> list[int]:
    """The files by which this process asks the server, from which it comes, for data-loading workers."""
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    return [server._forkserver_alive_fd, tracker._fd, *(server._inherited_fds or ())]


def _execute_child(popen: Any, args: Any, executable: Any, *given: Any) -> None:
    """In place of subprocess's own."""
    how = dict(zip(GIVEN, given, strict=False))
    words = [] if isinstance(args, str) or how["shell"] else [os.fspath(word) for word in args]
    script = words[2:] if words[1:2] == ["-u"] else words[1:]
    if words[:1] != [sys.executable] or not script[0].endswith((".py", "-c", "-m")):
        EXECUTE(popen, args, executable, *given)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    popen.pid = os.fork()
    popen._child_created = True
    if popen.pid:
        popen._close_pipe_fds(*(how[name] for name in PIPES))
        return
    code = 1
    try:
        _forget(how)
        environment = os.environ if how["env"] is None else how["env"]
        run_python(script, how["cwd"] or ".", dict(environment), how["start_new_session"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _forget(how: dict[str, Any]) -> None:
    """Gives a forked process what a new one has: its own files and streams, and no handlers."""
    atexit._clear()
    gc.freeze()  # an object that is freed would close a file whose number is another's by now
    for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if how[name] not in (-1, number):
            os.dup2(how[name], number)
    kept = {0, 1, 2, *how["pass_fds"], *server_files()}
    for name in os.listdir("/proc/self/fd") if how["close_fds"] else ():  # noqa: PTH208
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # that of the list itself is closed by now
                os.close(int(name))
    open_streams()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
