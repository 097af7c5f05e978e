"""bsub's eyes: what LSF 10 refuses, or would misread in silence, is refused here."""

import os
import re
import shlex

from fake_state import find_jobs

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


class Refused(Exception):
    """bsub's words; rc 255."""


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
        "ptile": int((re.search(r"ptile=(\d+)", options.get("-R", "")) or [0, 0])[1]),
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
