"""The console commands, also as `python -m service`."""

from service.server.signals import importing

__all__ = ["main", "score_dataset"]


def main() -> None:
    """Entry point of `iafvae`."""
    with importing():
        from service.cli.main import main as command_line
    command_line()


def score_dataset() -> None:
    """Entry point of `iafvae-score-dataset`."""
    with importing():
        from service.cli.main import score_dataset as command_line
    command_line()


if __name__ == "__main__":
    main()
