"""A strict LSF of our own: bsub, bjobs, bkill and bhist, and the daemon that runs jobs.

Everything lies in $FAKE_LSF_DIR: state.json under a lock, faults.json (command -> faults to come,
in order: rc255, refused, empty, lost, hang, hang_after). $FAKE_LSF_SCALE is the length of an LSF
minute in seconds. What LSF 10 refuses, or would misread in silence, is refused here.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

HOME = os.environ.get("FAKE_LSF_DIR", "")
SCALE = float(os.environ.get("FAKE_LSF_SCALE", "60"))
QUEUES = os.environ.get("FAKE_LSF_QUEUES", "normal gpuv100 gpul40s hpc").split()
MAX_MINUTES = 24 * 60
MAX_CORES = 64
VALUED = [
    "-J",
    "-q",
    "-n",
    "-R",
    "-gpu",
    "-W",
    "-wa",
    "-wt",
    "-o",
    "-oo",
    "-e",
    "-eo",
    "-P",
    "-Q",
    "-w",
    "-cwd",
    "-env",
    "-L",
    "-u",
    "-G",
    "-app",
    "-M",
]
FLAGS = ["-ti", "-N", "-B", "-r", "-H"]
ENDED = ("DONE", "EXIT")
EXIT_KILLED = 128 + signal.SIGKILL


class Refused(Exception):
    """bsub's words; rc 255."""


@contextlib.contextmanager
def locked():
    """The state, to read and to change."""
    path = os.path.join(HOME, "state.json")
    with open(os.path.join(HOME, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(path) as file:
                state = json.load(file)
        except FileNotFoundError:
            state = {"next": 101, "jobs": {}, "forgotten": [], "unknown": []}
        before = json.dumps(state)
        yield state
        after = json.dumps(state)
        if after != before:
            with open(path + ".new", "w") as file:
                file.write(after)
            os.replace(path + ".new", path)


def next_fault(command):
    path = os.path.join(HOME, "faults.json")
    with open(os.path.join(HOME, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(HOME, "calls.log"), "a") as log:
            log.write(json.dumps([command, *sys.argv[2:]]) + "\n")
        try:
            with open(path) as file:
                faults = json.load(file)
        except FileNotFoundError:
            return None
        if not faults.get(command):
            return None
        fault = faults[command].pop(0)
        with open(path, "w") as file:
            json.dump(faults, file)
        return fault


# bsub


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


def fail(text):
    print(text, file=sys.stderr)
    return 255


def directives(script):
    words = []
    for line in script.splitlines():
        if line.startswith("#BSUB"):
            try:
                words += shlex.split(line[len("#BSUB") :])
            except ValueError as error:
                raise Refused(f"{error}. Job not submitted.") from error
    return words


def parse_options(words):
    options = {}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            return options, [word, *words]
        if word in options:
            text = "duplicate section" if word == "-R" else f"{word}: given twice"
            raise Refused(f"{text}. Job not submitted.")
        if word in FLAGS:
            options[word] = True
        elif word in VALUED:
            if not words or words[0] in VALUED + FLAGS:
                raise Refused(f"{word}: Option requires an argument. Job not submitted.")
            options[word] = words.pop(0)
        else:
            raise Refused(f"{word}: Illegal option. Job not submitted.")
    return options, []


def make_job(options, script, command):
    name, indices, limit = parse_name(options.get("-J", "job"))
    queue = options.get("-q", QUEUES[0])
    if not set(queue.split()) <= set(QUEUES):
        raise Refused(f"{queue}: No such queue. Job not submitted.")
    if not options.get("-n", "1").isdigit() or int(options.get("-n", "1")) < 1:
        raise Refused("Bad argument for option -n. Job not submitted.")
    if int(options.get("-n", "1")) > MAX_CORES:
        raise Refused("Too many processors requested. Job not submitted.")
    check_resources(options.get("-R"))
    gpu = options.get("-gpu")
    gpu_form = r"num=\d+(:(mode=(shared|exclusive_process)|mps=(yes|no)|j_exclusive=(yes|no)))*"
    if gpu is not None and not re.fullmatch(gpu_form, gpu):
        raise Refused("Bad GPU requirement. Job not submitted.")
    if ("-wa" in options) != ("-wt" in options):
        raise Refused("-wa and -wt must be given together. Job not submitted.")
    if options.get("-wa", "INT") not in ("INT", "TERM", "USR1", "USR2"):
        raise Refused("Bad argument for option -wa. Job not submitted.")
    if not re.fullmatch(r"\d+( EXCLUDE\(\d+\))?", options.get("-Q", "99")):
        raise Refused("Bad argument for option -Q. Job not submitted.")
    minutes = to_minutes(options["-W"], "-W") if "-W" in options else MAX_MINUTES
    if minutes > MAX_MINUTES:
        raise Refused("RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.")
    return {
        "name": name,
        "queue": queue,
        "limit": limit,
        "minutes": minutes,
        "warn_minutes": to_minutes(options["-wt"], "-wt") if "-wt" in options else None,
        "warn_signal": options.get("-wa"),
        "output": options.get("-o") or options.get("-oo"),
        "num_cores": int(options.get("-n", "1")),
        "requeue": options.get("-Q"),
        "after": options.get("-w"),
        "orphans": bool(options.get("-ti")),
        "script": script,
        "command": command,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "elements": {str(index): {"stat": "PEND", "log": []} for index in indices},
    }


def parse_name(text):
    """Name, indices ([0] without an array) and limit."""
    if "[" not in text:
        if len(text) > 4094:
            raise Refused("Job name too long. Job not submitted.")
        return text, [0], None
    match = re.fullmatch(r"([A-Za-z0-9._-]+)\[([0-9,:-]+)\](?:%([1-9]\d*))?", text)
    bad = "Bad job array index list. Job not submitted."
    if match is None or len(text) > 255:
        raise Refused(bad)
    indices = []
    for part in match[2].split(","):
        bounds = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*)(?::([1-9]\d*))?)?", part)
        if bounds is None:
            raise Refused(bad)
        first = int(bounds[1])
        indices += range(first, int(bounds[2] or first) + 1, int(bounds[3] or 1))
    if not indices or len(set(indices)) != len(indices) or max(indices) > 1000:
        raise Refused(bad)
    return match[1], sorted(indices), int(match[3]) if match[3] else None


def check_resources(text):
    if text is None:
        return
    parts = re.findall(r"(\w+)\[([^\[\]]*)\]", text)
    if " ".join(f"{name}[{value}]" for name, value in parts) != " ".join(text.split()):
        raise Refused("Bad resource requirement syntax. Job not submitted.")
    names = [name for name, _ in parts]
    if len(set(names)) != len(names) or not set(names) <= {"span", "rusage", "select", "order"}:
        raise Refused("duplicate section. Job not submitted.")
    rusage = dict(parts).get("rusage")
    # LSF takes a bare number for MB, or what the site has set: we never mean that.
    if rusage is not None and not re.fullmatch(r"mem=\d+[KMGT]B", rusage):
        raise Refused("Error in rusage section. Job not submitted.")


def to_minutes(text, option):
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    if match is None:
        raise Refused(f"Bad argument for option {option}. Job not submitted.")
    return int(match[1] or 0) * 60 + int(match[2])


def check_dependency(job, state):
    for word in parents(job):
        if not find_jobs(word, state):
            raise Refused(f"{word}: No matching job found. Job not submitted.")


def parents(job):
    if not job["after"]:
        return []
    rest = re.sub(r"(ended|done)\(\"?[\w.-]+\"?\)|&&|\s", "", job["after"])
    if rest:
        raise Refused(f"Bad dependency {job['after']}. Job not submitted.")
    return re.findall(r"\(\"?([\w.-]+)\"?\)", job["after"])


def find_jobs(word, state):
    jobs = state["jobs"]
    found = {word} if word.isdigit() else {key for key in jobs if jobs[key]["name"] == word}
    return sorted(key for key in found if key in jobs and key not in state["forgotten"])


# bjobs, bhist, bkill


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


# The daemon


def start_daemon():
    with open(os.path.join(HOME, "daemon.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    with open(os.path.join(HOME, "daemon.log"), "ab") as log:
        subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), "daemon"],
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
            while os.path.exists(HOME) and not os.path.exists(os.path.join(HOME, "stop")):
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


def end(element, code, reason=None):
    element.update(stat="EXIT" if code else "DONE", exit_code=code, reason=reason)
    text = f"Exited with exit code {code}" if code else "Done successfully"
    element["log"].append(text)
    if reason:
        element["log"].append(f"Completed <exit>; {reason}")


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


if __name__ == "__main__":
    if not HOME:
        sys.exit("FAKE_LSF_DIR is not set")
    {"bsub": bsub, "bjobs": bjobs, "bhist": bhist, "bkill": bkill, "daemon": daemon}[sys.argv[1]]()
