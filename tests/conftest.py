"""What every test may rely on."""

import signal

# A script that runs the suite in the background (`make test &`) hands SIGINT down as ignored,
# and a shell cannot trap what was ignored when it started: the tests' children could not stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
