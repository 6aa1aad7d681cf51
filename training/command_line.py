"""What the scripts do with their command line and their messages."""

import argparse
import logging
import sys

from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging as transformers_logging


class SettingsError(ValueError):
    """Settings that contradict each other or name something that is not there; the message says what to change."""


def parse_settings(argv: list[str], dataclass_types: tuple, script: str, description: str) -> tuple:
    """
    Read flags, or one .json or .yaml file that holds all of them, into instances of the dataclasses.

    Raises:
        SettingsError: naming the file and the wrong key or value.
    """
    parser = HfArgumentParser(
        dataclass_types,
        usage=f"{script} [--flag value ...] | settings.json | settings.yaml    (--help lists the flags)",
        description=description,
        formatter_class=_HelpFormatter,
    )
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            return parser.parse_json_file(argv[0])
        if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(argv[0])
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, TypeError, OSError) as error:
        raise SettingsError(f"{argv[0]}: {error}" if len(argv) == 1 else str(error)) from None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and shows defaults; of flags without one the text says what happens."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def set_up_logging(args: TrainingArguments):
    """Messages of the main process on stderr; of the others only what goes wrong."""
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if args.process_index == 0 else logging.ERROR,
        handlers=[logging.StreamHandler(sys.stderr)],
    )
    for name in ("httpx", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # one bar per saved file
