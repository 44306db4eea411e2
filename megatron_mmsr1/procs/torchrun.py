"""`python -m megatron_mmsr1.procs.torchrun ...`: torchrun, whose store listens on the master's address alone."""

from __future__ import annotations

from megatron_mmsr1.procs import bound_store


def main() -> None:
    bound_store.install()
    from torch.distributed.run import main as run  # pyright: ignore[reportUnknownVariableType]

    run()


if __name__ == "__main__":
    main()
