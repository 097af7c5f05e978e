"""In imgtool's place: its words are a line of $RECORDED, and nothing is done.

What run-timed is given is recorded too, as a call of its own. `data make` makes its folder, for
the script to find.
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    words = sys.argv[1:]
    calls = [words]
    if "--" in words:
        command = words[words.index("--") + 1 :]
        assert command[0] == "imgtool"
        calls.append(command[1:])
    if words[:2] == ["data", "make"]:
        os.makedirs(words[3])
    with open(os.environ["RECORDED"], "a") as file:
        file.writelines(json.dumps(call) + "\n" for call in calls)
