"""A strict LSF of our own: bsub, bjobs, bkill and bhist, and the daemon that runs jobs.

Everything lies in $FAKE_LSF_DIR: state.json under a lock, faults.json (command -> faults to come,
in order: rc255, refused, empty, lost, hang, hang_after). $FAKE_LSF_SCALE is the length of an LSF
minute in seconds. What LSF 10 refuses, or would misread in silence, is refused here.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out

from fake_daemon import daemon, start_daemon
from fake_state import ENDED, HOME, SCALE, end, fail, find_jobs, locked, next_fault
from fake_submit import (
    QUEUES,
    Refused,
    check_dependency,
    directives,
    make_job,
    parse_options,
)


def bsub():
    fault = next_fault("bsub")
    if fault == "refused":
        sys.exit(fail("Connection reset by peer"))
    if fault == "rc255":
        sys.exit(255)
    if fault == "hang":
        time.sleep(3600)
    try:
        options, command = parse_options(sys.argv[2:])
        if command:
            script = None
        else:
            script = sys.stdin.read()
            own, rest = parse_options(directives(script))
            if rest:
                raise Refused(f"Bad #BSUB line: {shlex.join(rest)}. Job not submitted.")
            options = {**own, **options}
            if not script.strip():
                raise Refused("Empty job. Job not submitted.")
        job = make_job(options, script, command)
        with locked() as state:
            check_dependency(job, state)
            job_id = state["next"]
            state["next"] += 1
            if script is not None:  # spooled: later edits do not matter
                with open(os.path.join(HOME, f"{job_id}.script"), "w") as file:
                    file.write(script)
            state["jobs"][str(job_id)] = job
    except Refused as error:
        sys.exit(fail(str(error)))
    start_daemon()
    if fault == "hang_after":
        time.sleep(3600)
    if fault == "empty":
        sys.exit(0)
    if fault == "lost":
        sys.exit(255)
    print("Job is submitted to <default> project.")
    given = options.get("-q")
    where = f"queue <{given}>" if given else f"default queue <{QUEUES[0]}>"
    print(f"Job <{job_id}> is submitted to {where}.")


def bjobs():
    fault = next_fault("bjobs")
    if fault == "hang":
        time.sleep(3600)
    if fault == "rc255":
        sys.exit(fail("batch system daemon not responding ... still trying"))
    if fault == "empty":
        sys.exit(0)
    words = sys.argv[2:]
    name = form = None
    ids = []
    while words:
        word = words.pop(0)
        if word == "-J":
            name = words.pop(0)
        elif word == "-o":
            form = words.pop(0)
        elif word not in ("-a", "-noheader"):
            if word.startswith("-"):
                sys.exit(fail(f"{word}: Illegal option"))
            ids.append(word)
    if form is None or not form.endswith("delimiter='^'"):
        sys.exit(fail("only -o ... delimiter='^' is known here"))
    fields = form.split()[:-1]
    missing = False
    with locked() as state:
        for word in ids or [name]:
            job_id, _, index = word.partition("[")
            found = find_jobs(job_id, state)
            if not found:
                missing = True
                print(f"Job <{word}> is not found", file=sys.stderr)
            for key in found:
                for number, element in state["jobs"][key]["elements"].items():
                    if not index or index == f"{number}]":
                        known = describe(key, number, element, state["jobs"][key], state)
                        print("^".join(known[field] for field in fields))
    sys.exit(255 if missing else 0)


def describe(key, number, element, job, state):
    stat = "UNKWN" if f"{key}[{number}]" in state["unknown"] else element["stat"]
    code = element.get("exit_code")
    used = time.time() - element["started"] if element.get("started") else 0
    return {
        "jobid": key,
        "jobindex": number,
        "job_name": f"{job['name']}[{number}]" if number != "0" else job["name"],
        "stat": stat,
        "exit_code": str(code) if stat == "EXIT" else "-",
        "exit_reason": element.get("reason") or "-",
        "time_left": "-",
        "runtimelimit": f"{job['minutes']}.0",
        "run_time": f"{used / SCALE * 60:.0f} second(s)",
    }


def bhist():
    fault = next_fault("bhist")
    if fault == "hang":
        time.sleep(3600)
    ids = []
    words = sys.argv[2:]
    while words:
        word = words.pop(0)
        if word == "-n":
            words.pop(0)
        elif word != "-l":
            if word.startswith("-"):
                sys.exit(fail(f"{word}: Illegal option"))
            ids.append(word)
    missing = False
    with locked() as state:
        for word in ids:
            match = re.fullmatch(r"(\d+)(?:\[(\d+)\])?", word)
            job = state["jobs"].get(match[1]) if match else None
            # "erased" is gone from the event files too; "forgotten" from bjobs alone.
            if job is None or match[1] in state.get("erased", []):
                missing = True
                continue
            element = job["elements"].get(match[2] or "0")
            print(f"Job <{word}>, Job Name <{job['name']}>, User <tester>, Project <default>, Com")
            print(" " * 21 + f"mand <script>, Queue <{job['queue']}>;")
            for line in element["log"]:
                print(f"Thu Jan  1 00:00:00: {line};")
            print("-" * 78)
    if missing:
        print("No matching job found", file=sys.stderr)
    sys.exit(255 if missing else 0)


def bkill():
    if next_fault("bkill") == "hang":
        time.sleep(3600)
    words = sys.argv[2:]
    name = None
    if words[:1] == ["-s"]:
        name = words[1]
        words = words[2:]
    if not words or "0" in words:
        sys.exit(fail("bkill 0 would end every job: refused by the fake"))
    for word in words:
        match = re.fullmatch(r"(\d+)(?:\[(\d+)\])?", word)
        if match is None:
            sys.exit(fail(f"{word}: Illegal job ID."))
        with locked() as state:
            job = state["jobs"].get(match[1])
            if job is None or match[1] in state["forgotten"]:
                print(f"Job <{word}>: No matching job found", file=sys.stderr)
                continue
            for number, element in job["elements"].items():
                if match[2] in (None, number):
                    signal_element(job, element, name, word)


def signal_element(job, element, name, word):
    if element["stat"] in ENDED:
        print(f"Job <{word}>: Job has already finished")
    elif element["stat"] == "PEND":
        end(element, 130, "TERM_OWNER: job killed by owner")
        print(f"Job <{word}> is being terminated")
    elif name is not None:
        element.setdefault("signals", []).append(name)
        print(f"Job <{word}> is being signaled")
    else:
        # A parallel job gets KILL alone; others INT and TERM before it.
        element["signals"] = ["KILL"] if job["num_cores"] > 1 else ["INT", "TERM", "KILL"]
        element["killed"] = True
        print(f"Job <{word}> is being terminated")


def blaunch():
    """The command once for each host of -z, all of them on this machine; a signal goes to all."""
    if sys.argv[2] != "-z":
        sys.exit(fail("only -z HOSTS is known here"))
    tasks = [
        subprocess.Popen(sys.argv[4:], env={**os.environ, "FAKE_HOST": host})
        for host in sys.argv[3].split()
    ]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda got, frame: [task.send_signal(got) for task in tasks])
    sys.exit(max(abs(task.wait()) for task in tasks))


if __name__ == "__main__":
    if not HOME:
        sys.exit("FAKE_LSF_DIR is not set")
    known = (bsub, bjobs, bhist, bkill, blaunch, daemon)
    {one.__name__: one for one in known}[sys.argv[1]]()
