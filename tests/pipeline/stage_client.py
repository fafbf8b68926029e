"""What a pipeline test starts in place of `python` and `dvc`: it has stage_server.py run the script in a fork.

`python -I -S stage_client.py SERVER PYTHON WORD...`: SERVER is the server's socket, PYTHON the real interpreter, and
the words are those of a command line after `python`. A stage and a console script are served; for anything else
(`-m`, `-c`, a script of a test) this process becomes the real Python. A signal that it gets reaches the fork, and the
exit is the fork's own, be it a code or a signal. It imports little, since a pipeline starts it sixty times.
"""

import json
import os
import signal
import socket
import struct
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def main() -> None:
    server, python, *words = sys.argv[1:]
    if not words or not _is_served(words[0], os.path.dirname(python)):  # noqa: PTH120 - pathlib takes longer than all
        os.execv(python, [python, *words])  # noqa: S606
    _end_as(_served(server, words))


def _is_served(script: str, binaries: str) -> bool:
    return script.startswith("stages/") or script in (f"{binaries}/dvc", f"{binaries}/clipdistill")


def _served(server: str, words: list[str]) -> int:
    """Have a command line run; exit code, negative for a signal."""
    here = os.getcwd()  # noqa: PTH109
    request = json.dumps({"words": words, "folder": here, "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        # By a short name: the address of a socket has little room.
        os.chdir(os.path.dirname(server))  # noqa: PTH120
        connection.connect(os.path.basename(server))  # noqa: PTH119
        os.chdir(here)
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
        socket.send_fds(connection, [struct.pack("i", len(request))], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        sys.exit(f"the stage server ended while it ran {' '.join(words)}")
    return int(struct.unpack("i", answer)[0])


def _end_as(code: int) -> None:
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
