"""mbatchd and sbatchd in one: starts jobs, signals them on the scaled clock, notes their ends."""

import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time

from fake_state import ENDED, HOME, SCALE, end, find_jobs, locked

MAX_SEC = 1800.0  # no test lasts longer; a forgotten daemon does not stay
EXIT_KILLED = 128 + signal.SIGKILL


def start_daemon():
    with open(os.path.join(HOME, "daemon.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    with open(os.path.join(HOME, "daemon.log"), "ab") as log:
        subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_lsf.py"),
                "daemon",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )


def daemon():
    processes = {}
    with open(os.path.join(HOME, "daemon.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            give_up = time.monotonic() + MAX_SEC
            while not os.path.exists(os.path.join(HOME, "stop")) and time.monotonic() < give_up:
                with locked() as state:
                    for job_id, job in state["jobs"].items():
                        advance(state, job_id, job, processes)
                time.sleep(0.03)
        finally:
            for process in processes.values():
                kill_tree(process.pid)


def advance(state, job_id, job, processes):
    ready = dependency(state, job)
    running = [e for e in job["elements"].values() if e["stat"] == "RUN"]
    room = (job["limit"] or 10**6) - len(running)
    for number, element in job["elements"].items():
        if element["stat"] == "RUN":
            look_after(job, element, job_id, number, processes)
        elif element["stat"] == "PEND" and ready and room > 0:
            room -= 1
            launch(job, element, job_id, number, processes)


def dependency(state, job):
    for condition, parent in re.findall(r"(ended|done)\(\"?([\w.-]+)\"?\)", job["after"] or ""):
        for key in find_jobs(parent, state):
            stats = {element["stat"] for element in state["jobs"][key]["elements"].values()}
            if condition == "done" and "EXIT" in stats and job["orphans"]:
                for element in job["elements"].values():
                    if element["stat"] == "PEND":
                        end(element, 1, "TERM_ORPHAN_SYSTEM: orphan job terminated")
            if not stats <= ({"DONE"} if condition == "done" else set(ENDED)):
                return False
    return True


def launch(job, element, job_id, number, processes):
    output = os.path.join(HOME, f"{job_id}_{number}.out")
    environment = {
        **job["env"],
        "LSB_JOBID": job_id,
        "LSB_JOBINDEX": number,
        "LSB_JOBNAME": job["name"],
        "LSB_QUEUE": job["queue"].split()[0],
        "LSB_HOSTS": " ".join(["localhost"] * job["num_cores"]),
        "LSB_DJOB_HOSTFILE": host_file(job, job_id),
        "LS_SUBCWD": job["cwd"],
    }
    if job["script"] is not None:
        path = os.path.join(HOME, f"{job_id}.script")
        first = job["script"].splitlines()[0]
        interpreter = shlex.split(first[2:]) if first.startswith("#!") else ["/bin/sh"]
        words = [*interpreter, path]
    else:
        words = ["/bin/sh", "-c", shlex.join(job["command"])]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=job["cwd"],
            env=environment,
            start_new_session=True,
        )
    processes[f"{job_id}[{number}]"] = process
    element.update(stat="RUN", started=time.time(), pid=process.pid, warned=False, usr2=False)
    element.pop("killed", None)
    element["signals"] = []
    element["log"].append("Starting (Pid 1)")


def host_file(job, job_id):
    """A line for each slot; hosts of ptile slots each."""
    path = os.path.join(HOME, f"{job_id}.hosts")
    with open(path, "w") as file:
        for slot in range(job["num_cores"]):
            file.write(f"node{slot // (job['ptile'] or job['num_cores']) + 1}\n")
    return path


def look_after(job, element, job_id, number, processes):
    process = processes[f"{job_id}[{number}]"]
    code = process.poll()
    minutes = (time.time() - element["started"]) / SCALE
    if code is None:
        warn = job["warn_minutes"]
        if warn is not None and not element["warned"] and minutes >= job["minutes"] - warn:
            element["warned"] = True
            send(process.pid, job["warn_signal"])
        if minutes >= job["minutes"] and not element["usr2"]:
            element["usr2"] = True
            send(process.pid, "USR2")
        if minutes >= job["minutes"] + 10:
            kill_tree(process.pid)
        for name in element.pop("signals", []):
            kill_tree(process.pid) if name == "KILL" else send(process.pid, name)
        element["signals"] = []
        return
    code = code if code >= 0 else 128 - code
    kill_tree(process.pid)
    report(job, element, job_id, number, code)
    again = re.match(r"\d+", job["requeue"] or "")
    if again and code == int(again[0]) and not element.get("killed"):
        element["log"].append(f"Exited with exit code {code}")
        element["log"].append("Pending: Job has been requeued")
        element.update(stat="PEND")
        return
    reason = None
    if element.get("killed"):
        reason = "TERM_OWNER: job killed by owner"
    elif element["usr2"] and code in (140, EXIT_KILLED):
        reason = "TERM_RUNLIMIT: job killed after reaching LSF run time limit"
    end(element, code, reason)


def report(job, element, job_id, number, code):
    """The output appears when the job ends, not before, below LSF's own words."""
    if not job["output"]:
        return
    path = job["output"].replace("%J", job_id).replace("%I", number)
    path = os.path.join(job["cwd"], path)
    if not os.path.isdir(os.path.dirname(path)):
        return  # LSF loses it too
    with open(os.path.join(HOME, f"{job_id}_{number}.out"), "rb") as file:
        text = file.read()
    with open(path, "ab") as file:
        file.write(f"Sender: LSF System <lsf>\nexit code {code}\n\n".encode() + text)


def send(pid, name):
    """To the job's process group, as LSF does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, getattr(signal, f"SIG{name}"))


def kill_tree(pid):
    """KILL to the session's every process and what they started in sessions of their own."""
    below = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                below.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(
                    int(entry)
                )
    found = [pid]
    for one in found:
        found += below.get(one, [])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for one in found[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
