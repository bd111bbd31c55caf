"""Shell blocks run by bash, with a `dft-mm` whose process starts at once: a small client on the PATH hands its words to
the tests' own server of warm processes (started.py), which runs our `main`.
"""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

from started import done

CLIENT = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code, said = json.loads(server.makefile().read())
sys.stdout.write(said)
sys.exit(code)
"""


@contextlib.contextmanager
def shell(folder):
    """A function that runs a script of a language, bash or python, in `folder`: (exit code, output)."""
    here = folder / ".shell"
    here.mkdir()
    address = str(here / "s")
    client = here / "dft-mm"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(here), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        threading.Thread(target=_serve, args=(server, folder), daemon=True).start()

        def run(language, script):
            if language == "python":
                prelude = f"import os; os.chdir({str(folder)!r})\n{script}\nraise SystemExit"
                return done([], folder, environment, prelude, seconds=900)
            command = ["bash", "-euo", "pipefail", "-c", script]
            ran = subprocess.run(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                check=False,
            )  # fmt: skip
            return ran.returncode, ran.stdout

        yield run


def _serve(server, folder):
    with contextlib.suppress(OSError):  # closed when the page is done
        while True:
            client, _ = server.accept()
            with client, client.makefile("rw") as stream:
                words, cwd, environment = json.loads(stream.read())
                try:
                    answer = done(words, folder, environment, f"import os; os.chdir({cwd!r})", seconds=900)
                except AssertionError as error:
                    answer = 1, f"Traceback: {error}"
                stream.write(json.dumps(answer))
