"""What a contained program can do, and what is left of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dft_mm.errors import InputError
from dft_mm.evaluate.code.program import MIB, Limits, Program
from dft_mm.evaluate.code.running import python_home
from dft_mm.evaluate.code.sandbox import Sandbox, broken
from dft_mm.evaluate.code.seccomp import filter_program
from dft_mm.evaluate.code.toolchain import open_sandbox, require

PYTHON = python_home()[0]


def python(code, **limits):
    return Program({"program.py": code.encode()}, [PYTHON, "-I", "program.py"], limits=Limits(**limits))


def alive(mark):
    """Processes of the machine whose command line holds the mark."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and mark.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_program_reads_its_files_and_answers(sandbox):
    code = "import sys; print(open('data.txt').read()); print('worse', file=sys.stderr); sys.exit(3)"
    result = sandbox.run(Program({"program.py": code.encode(), "data.txt": b"42"}, [PYTHON, "program.py"]))
    assert (result.status, result.stdout, result.stderr) == (3, b"42\n", b"worse\n")
    assert result.compiled
    assert (result.stopped, result.error) == (None, "")


def test_a_compiler_that_fails_is_told_from_a_program_that_fails(sandbox):
    compile_fails = sandbox.run(Program({}, ["/bin/true"], ["/bin/bash", "-c", "echo no >&2; exit 5"]))
    program_fails = sandbox.run(Program({}, ["/bin/false"], ["/bin/true"]))
    assert (compile_fails.status, compile_fails.compiled, compile_fails.stderr) == (1, False, b"no\n")
    assert (program_fails.status, program_fails.compiled) == (1, True)


FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
FORKS = "import os, time\nfor _ in range(70):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)"
HOGS = """import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(60 << 20); time.sleep(60)
time.sleep(60)"""
FILES = "import time\nfor n in range(40): open(f'/tmp/{n}', 'wb').write(bytes(10 << 20))\ntime.sleep(60)"
TALK = "line = 'x' * 10**6\nfor _ in range(10**4): print(line)"
WAIL = "import sys\nwhile True: sys.stderr.write('x' * 1000)"


@pytest.mark.parametrize(
    ("code", "stopped"),
    [
        ("while True: pass", "time"),
        ("import time; time.sleep(60)", "time"),
        (FORK_BOMB, "processes"),
        (FORKS, "processes"),
        (TALK, "output"),
        (WAIL, "output"),
        (HOGS, "memory"),
        (FILES, "memory"),
    ],
)
def test_limits_stop_all_of_it(sandbox, code, stopped):
    begin = time.monotonic()
    result = sandbox.run(python(code, wall_s=2.5, memory_bytes=300 * MIB, disk_bytes=512 * MIB))
    assert result.stopped == stopped
    assert result.status is None
    assert len(result.stdout) + len(result.stderr) <= 2 * MIB
    assert time.monotonic() - begin < 8


def test_shared_pages_count_once(sandbox):
    code = (
        "import os, time\nkept = bytearray(100 << 20)\nfor _ in range(6):\n    if os.fork() == 0: time.sleep(60)\n"
        "time.sleep(0.5); print('fine')"
    )
    assert sandbox.run(python(code, memory_bytes=300 * MIB)).stdout == b"fine\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("kept = []\nwhile True: kept.append(bytearray(10 << 20))", "MemoryError"),
        ("open('/tmp/x', 'wb').write(bytes(80 << 20))", "No space left"),
        ("open('/dev/shm/x', 'wb').write(bytes(80 << 20))", "No space left"),
        ("import os; os.memfd_create('hidden memory')", "not permitted"),
        ("import ctypes, os; c = ctypes.CDLL(None, use_errno=True); c.shmget(0, 1 << 30, 0o1600) + 1 or os.abort()",
         ""),
        ("import socket; socket.socket(socket.AF_VSOCK)", "not supported"),
        ("import socket; socket.create_connection(('192.0.2.1', 80), 2)", "unreachable"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("open('/x', 'w')", "Read-only"),
        ("open('/dev/x', 'w')", "Read-only"),
        ("open('/etc/shadow')", "No such file"),
        ("import os; os.setuid(0)", "rror"),
        ("import os; os.unshare(0x10000000)" if sys.version_info >= (3, 12) else
         "import ctypes; ctypes.CDLL(None).unshare(0x10000000) == 0 or 1/0", "rror"),
        ("import os; os.kill(1, 9); os.kill(1, 0); 1/0", "ZeroDivisionError"),
        ("input()", "EOFError"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_fails_inside(sandbox, code, error):
    result = sandbox.run(python(code, memory_bytes=500 * MIB, disk_bytes=64 * MIB, wall_s=10))
    assert result.status not in (0, None)
    assert error in result.stderr.decode()
    assert not result.stopped


def test_nothing_of_the_machine_is_seen(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "swordfish")
    (tmp_path / "private.txt").write_text("private")
    code = (
        "import os, socket\n"
        "environment = b''\n"
        "for pid in filter(str.isdecimal, os.listdir('/proc')):\n"
        "    try: environment += open(f'/proc/{pid}/environ', 'rb').read()\n"
        "    except OSError: pass\n"
        "print(b'swordfish' in environment, 'SECRET_KEY' in os.environ)\n"
        f"print(os.path.exists({str(tmp_path)!r}), *filter(os.path.exists, ('/home', '/root', '/work', '/var')))\n"
        "print(sorted(n for n, *_ in os.walk('/etc')) and os.path.exists('/etc/hostname'), socket.gethostname())\n"
        "print(len([p for p in os.listdir('/proc') if p.isdecimal()]) < 4, os.getuid() == 0)\n"
        "status = open('/proc/self/status').read()\n"
        "print(int(status.split('CapBnd:')[1].split()[0], 16), status.split('NoNewPrivs:')[1].split()[0])\n"
    )
    result = sandbox.run(python(code))
    assert result.stdout.decode().splitlines() == [
        "False False", "False", "False sandbox", "True False", "0 1",
    ]  # fmt: skip


def test_a_server_of_the_machine_is_out_of_reach(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert "refused" in sandbox.run(python(code)).stderr.decode()
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_daemon_ends_with_its_program(sandbox):
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        "import os, subprocess\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for n in range(3): os.close(n)\n"
        f"        os.execv('/bin/bash', ['/bin/bash', '-c', 'while true; do sleep 1; done', '{mark}'])\n"
        "    os._exit(0)\n"
        "import time; time.sleep(0.5); print('started')"
    )
    assert sandbox.run(python(code)).stdout == b"started\n"
    assert alive(mark) == []


def test_output_comes_whole_up_to_the_limit(sandbox):
    result = sandbox.run(python(f"print('x' * {MIB - 1})"))
    assert (result.status, len(result.stdout)) == (0, MIB)
    assert sandbox.run(python(f"print('x' * {MIB})")).stopped == "output"


def test_links_and_names_reach_nothing_outside(sandbox, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    code = (
        f"import os\nos.symlink({str(victim)!r}, 'link')\n"
        "try: open('link', 'w').write('gone')\nexcept OSError as error: print('no', error.errno)\n"
        "os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 1 << 40)\n"
        "os.mkfifo('pipe'); os.makedirs('a/' * 200)\n"
    )
    result = sandbox.run(python(code))
    assert (result.status, result.stdout) == (0, b"no 2\n")
    assert victim.read_text() == "untouched"


def test_many_run_at_once_in_order(sandbox):
    results = list(sandbox.map(lambda n: sandbox.run(python(f"print({n})")).stdout, list(range(12))))
    assert results == [f"{n}\n".encode() for n in range(12)]


def test_users_of_several_programs_differ(sandbox):
    if os.geteuid() != 0:
        pytest.skip("only root can give up its user")
    mark = f"{time.monotonic_ns()}"
    seen = []

    def look(number):
        if number == 2:
            time.sleep(0.7)
            return seen.extend(Path(f"/proc/{pid}").stat().st_uid for pid in alive(mark))
        return sandbox.run(python(f"import time; time.sleep(1.5) # {mark}"))

    class Three(Sandbox):
        def __init__(self):
            super().__init__()
            self.workers = 3

    with Three() as three:
        code = Program({}, ["/bin/bash", "-c", "sleep 1.5; true", mark])
        list(three.map(lambda n: look(n) if n == 2 else three.run(code), [0, 1, 2]))
    assert len(set(seen)) == 2
    assert 0 not in seen


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_leaves_no_program(sandbox, how):
    mark = f"left-{time.monotonic_ns()}"
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from dft_mm.evaluate.code.program import Program\n"
        "from dft_mm.evaluate.code.toolchain import open_sandbox\n"
        "with open_sandbox() as sandbox:\n"
        f"    program = Program({{}}, ['/bin/bash', '-c', 'sleep 60; true', '{mark}'])\n"
        "    print('ready', flush=True)\n"
        "    list(sandbox.map(sandbox.run, [program] * 4))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 10
        while len([pid for pid in alive(mark) if pid != child.pid]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(how)
        child.wait(timeout=10)
    time.sleep(0.3)
    assert alive(mark) == []


def test_a_filter_for_every_machine_that_is_known():
    for machine in ("x86_64", "aarch64"):
        assert len(filter_program(machine)) % 8 == 0
    assert filter_program("pdp11") is None


class TestWithoutBubblewrap:
    @pytest.fixture
    def no_bwrap(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_programs_are_refused_with_the_way_out(self, no_bwrap):
        with pytest.raises(InputError, match=r"bwrap is not installed; install bubblewrap .*--unsafe-exec"):
            require(["py"], unsafe_exec=False)

    def test_unsafe_exec_runs_them_as_children(self, no_bwrap):
        require(["py", "sh"], unsafe_exec=True)
        assert open_sandbox(unsafe_exec=True).unsafe

    def test_a_sandbox_that_works_is_used_all_the_same(self, sandbox):
        assert not open_sandbox(unsafe_exec=True).unsafe


class TestUnsafe:
    """A plain child process: the limits that such a child has."""

    @pytest.fixture
    def plain(self):
        return Sandbox(unsafe=True)

    @pytest.mark.parametrize(
        ("code", "stopped"),
        [
            ("while True: pass", "time"),
            (TALK, "output"),
            (FORKS, "processes"),
            (FORK_BOMB, "processes"),
            (HOGS, "memory"),
        ],
    )
    def test_limits(self, plain, code, stopped):
        assert plain.run(python(code, wall_s=2, memory_bytes=300 * MIB)).stopped == stopped

    def test_its_environment_and_folder_are_its_own_and_go(self, plain, monkeypatch):
        monkeypatch.setenv("SECRET_KEY", "swordfish")
        result = plain.run(python("import os; print('SECRET_KEY' in os.environ, os.getuid() == 0, os.getcwd())"))
        secret, root, folder = result.stdout.decode().split()
        assert (secret, root) == ("False", "False")
        assert not Path(folder).exists()

    def test_a_daemon_ends_with_it(self, plain):
        mark = f"daemon-{time.monotonic_ns()}"
        code = (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
            f"    os.execv('/bin/bash', ['/bin/bash', '-c', 'while true; do sleep 1; done', '{mark}'])\ntime.sleep(0.5)"
        )
        assert plain.run(python(code)).status == 0
        assert alive(mark) == []


def test_a_sandbox_that_hides_nothing_is_refused(monkeypatch, sandbox):
    import dft_mm.evaluate.code.contained as contained

    whole = contained._walls
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-uts"]
    monkeypatch.setattr(
        contained, "_walls", lambda *given: [*apart, *(word for word in whole(*given) if word != "--unshare-all")]
    )
    assert "the network can be reached" in broken(Sandbox())
    monkeypatch.setattr(contained, "_walls", lambda *given: [*whole(*given), "--ro-bind", "/home", "/home"])
    assert "home folders can be seen" in broken(Sandbox())
