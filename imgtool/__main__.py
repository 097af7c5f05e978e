"""`python -m imgtool`, for launchers that want a module (torchrun -m imgtool)."""

import os

if __name__ == "__main__":
    if {"RANK", "IMGTOOL_RANKS_DIR"} <= os.environ.keys():
        from imgtool.process.words import speaking

        with speaking():
            from commands.main import main

            main()
    else:
        from commands.main import main

        main()
