"""`python -m imgtool`, for launchers that want a module (torchrun -m imgtool)."""

from commands.main import main

if __name__ == "__main__":
    main()
