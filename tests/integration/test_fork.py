"""A fork of a program that uses the library: the child holds nothing of its parent's, and is a session of its own."""

from __future__ import annotations

import textwrap

from skyward_etcd.active import Connection
from tests.integration.helpers import Scripts, keys_under, said

LOAD = """
    import gc

    def child(work):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        return pid

    def ends_well(pid):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "hangs"

    stop = threading.Event()
    done = []

    def count():
        while not stop.is_set():
            sky.counter("load").increment()
            done.append(1)
            time.sleep(0.001)

    async def count_async():
        async def one():
            while not stop.is_set():
                await sky.counter("load").increment_async()
                done.append(1)
                await asyncio.sleep(0.001)
        await asyncio.gather(one(), one(), one())

    def wait():
        sky.queue("never").get(timeout=60)

    threads = [threading.Thread(target=target) for target in (count, count, lambda: asyncio.run(count_async()), wait)]

    def under_load():
        for thread in threads:
            thread.start()
        while len(done) < 20:
            time.sleep(0.01)

    def relax():
        stop.set()
        sky.queue("never").put("the end")
        for thread in threads:
            thread.join()
"""


def program(code: str) -> str:
    return textwrap.dedent(LOAD) + textwrap.dedent(code)


def test_children_that_leave_the_client_alone_end_well(solo: Connection, scripts: Scripts) -> None:
    """As the workers of a data loader do: a hundred, forked while threads, tasks and watches are at it."""
    code = """
        def work():
            garbage = [[number] for number in range(1000)]
            del garbage
            gc.collect()
            sum(number * number for number in range(2000))

        with sky.connect():
            under_load()
            codes = []
            for _ in range(25):
                codes += map(ends_well, [child(work) for _ in range(4)])
            before = len(done)
            while len(done) < before + 20:
                time.sleep(0.01)
            relax()
            print(len(codes), set(codes))
    """
    assert said(scripts.start(solo, program(code)), timeout_s=55) == ["100 {0}"]


def test_children_that_exit_as_programs_do_end_well(solo: Connection, scripts: Scripts) -> None:
    """Not by ``os._exit``: the library's own clean-up at exit runs in the child, and takes nothing from the parent."""
    code = """
        with sky.connect():
            lock = sky.lock("l")
            hold = lock.acquire()
            pids = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    sys.exit(0)
                pids.append(pid)
            print({ends_well(pid) for pid in pids}, hold.valid)
            lock.release()
    """
    assert said(scripts.start(solo, program(code))) == ["{0} True"]


def test_children_that_use_the_client_have_a_session_of_their_own(solo: Connection, scripts: Scripts) -> None:
    code = """
        def work():
            name = sky.set("s")._session.open().id
            totals = [sky.counter("c").increment() for _ in range(5)]
            sky.set("sessions").add(name)
            with sky.lock("l"):
                sky.dict("d")[name] = sky.queue("q").get(timeout=10)
            sky.barrier("b", n=8).wait(timeout=15)
            sky.set("s")._session.close()

        with sky.connect() as conn:
            under_load()
            sky.queue("q").put_many(range(8))
            sky.counter("c").increment()
            codes = [ends_well(pid) for pid in [child(work) for _ in range(8)]]
            relax()
            ours = conn._session().id in sky.set("sessions")
            print(set(codes), sky.counter("c").value, len(sky.set("sessions")), ours)
            print(sorted(sky.dict("d").values()))
    """
    assert said(scripts.start(solo, program(code))) == ["{0} 41 8 False", "[0, 1, 2, 3, 4, 5, 6, 7]"]
    assert keys_under(solo._session(), "sessions/") == [f"sessions/{solo._session().id}"]


def test_a_child_holds_nothing_that_its_parent_holds(solo: Connection, scripts: Scripts) -> None:
    code = """
        def work():
            try:
                sky.lock("l").release()
            except errors.NotHeld:
                pass
            else:
                raise AssertionError("the child has released its parent's lock")
            try:
                hold.release()
            except (errors.NotHeld, errors.HoldLost):
                pass
            else:
                raise AssertionError("the child has released its parent's hold")
            try:
                sky.lock("l").acquire(timeout=0.1)
            except errors.LockTimeout:
                sky.set("s")._session.close()

        with sky.connect():
            hold = sky.lock("l").acquire()
            print(ends_well(child(work)), hold.valid)
            sky.lock("l").release()
    """
    assert said(scripts.start(solo, program(code))) == ["0 True"]
