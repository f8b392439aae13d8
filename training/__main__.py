"""`iafvae-train`, also as `python -m training`: says what to install where torch is missing."""

import sys

from service.server.signals import importing

# What the extra `train` brings and the service does not have.
EXTRA = {"torch", "onnx", "onnxscript", "pooch", "safetensors", "matplotlib", "tensorboard"}


def main() -> None:
    """Run `training.cli`, with one line instead of a traceback where the extra is not installed."""
    try:
        with importing():
            from training.cli.main import main as command_line
        command_line()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.stderr.write(
            f"error: training needs {error.name}, which the service alone does not install: "
            "make install-train, or pip install -e '.[train]' -c constraints.txt\n"
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
