"""The commands of `reverie`, and how each ends: errors become one line and an exit status."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from reverie.cli.options import tell_warnings
from reverie.errors import ReverieError

BAD_INPUT = 2
INTERRUPTED = 128 + 2  # as a shell reports SIGINT
BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

app = App(
    name="reverie",
    help="Draw pictures from words with Stable Diffusion, offline.",
    help_format="plaintext",  # markdown would cost 60 ms of imports
    help_on_error=False,
)
app["--help"].group = app["--version"].group = "Options"

app.suppress_keyboard_interrupt = False

# Commands are named by their path and imported when called, so that `reverie --help` stays quick; where there are many
# flags, the usage is given, so that cyclopts does not read all of them once more for one line.
app.command("reverie.cli.image:image", help="Draw pictures of a prompt.", usage="reverie image [OPTIONS] [ARGS]")
app.command("reverie.cli.replay:replay", help="Make a picture or a film again from the request that it carries.")
app.command(
    "reverie.cli.animate:animate",
    help="Make a film from prompt to prompt.",
    usage="reverie animate [OPTIONS] [ARGS...]",
)
app.command(
    "reverie.cli.music:music", help="Make music of a prompt, or over a sound.", usage="reverie music [OPTIONS] PROMPT"
)
app.command("reverie.cli.spectrogram:spectrogram", help="Turn a sound into a picture of its spectrogram.")
app.command("reverie.cli.spectrogram:sound", help="Turn a picture of a spectrogram into a sound.")
app.command("reverie.cli.data:concepts", help="List what a bundled model knows, in English and Chinese.")
app.command("reverie.cli.data:app", name="data", help="Make training data.")
app.command("reverie.cli.inspect:inspect", help="Tell what a file of weights or a picture is.")
app.command("reverie.cli.inspect:convert", help="Turn a single file into a folder, or a folder into a single file.")
app.command("reverie.cli.inspect:cache", help="List what is kept between runs, or remove it.")
app.command("reverie.cli.train:train", help="Train a model from a recipe.")
app.command("reverie.cli.train:finetune", help="Fine-tune a model on pictures or music, by a recipe.")
app.command("reverie.cli.train:distill", help="Distil a model into one of one to four steps, by a recipe.")
app.command("reverie.cli.replay:upscale", help="Enlarge pictures by a learned upscaler.")
app.command("reverie.cli.similarity:similarity", help="Tell how alike pictures and texts are.")
app.command("reverie.cli.classify:classify", help="Name pictures by labels, or measure how often that is right.")
app.command("reverie.cli.index:index", help="Embed a collection of pictures, so that it can be searched.")
app.command("reverie.cli.index:search", help="Find pictures of an index by words and by example.")
app.command("reverie.cli.shards:curate", help="Keep the samples of shards that are worth learning from.")
app.command("reverie.cli.shards:render", help="Draw a file of requests to webdataset shards.")
app.command("reverie.cli.shards:encode", help="Encode the pictures of shards ahead, for training.")
app.command("reverie.cli.serve:serve", help="Serve a page to draw and play on, and what other programs speak.")
app.command("reverie.cli.serve:mcp", help="Offer tools to assistants: draw, edit, animate, compare, music (MCP).")
app.command("reverie.cli.replay:watermark_app", name="watermark", help="Read and write invisible watermarks.")


@app.meta.default
def every_command(
    *, debug: Annotated[bool, Parameter(negative=(), show_default=False, group="Options")] = False
) -> None:
    """List in the help of each command what `run` takes out of a command line before cyclopts reads it.

    Parameters
    ----------
    debug
        Show the traceback of an error.
    """


def run(arguments: Sequence[str]) -> int:
    """Run a command line (without the program's name) and return its exit status, 0 when all went well."""
    debug = "--debug" in arguments
    try:
        with tell_warnings():
            app(
                [argument for argument in arguments if argument != "--debug"],
                exit_on_error=False,
                print_error=False,
                result_action="return_none",
            )
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # `reverie concepts | head`; rich exits where its reader has gone
        _drop_stdout()
        return BROKEN_PIPE
    except (ReverieError, CycloptsError, OSError) as error:
        if debug:
            raise
        if isinstance(error, OSError):
            _drop_stdout()  # a full disk, of which python would complain once more at exit
        complain(message_of(error))
        return BAD_INPUT
    except Exception as error:
        if debug:
            raise
        complain(f"{type(error).__name__}: {error}; --debug shows where it came from")
        return 1
    return 0


def _drop_stdout() -> None:
    """Send what is still to be written to stdout nowhere, where stdout cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def message_of(error: Exception) -> str:
    """Say what was wrong as plain text; fields that the library names in backticks become flags."""
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected '{' '.join(error.unused_tokens or ())}'; put a prompt of several words in quotes"
    if isinstance(error, CycloptsError):
        error.verbose = False
    if isinstance(error, OSError):
        from reverie.files import reason_of

        return reason_of(error) + (f": '{error.filename}'" if error.filename else "")
    from reverie.cli.ask import FIELDS

    flags = {field: flag for flag, field in FIELDS.items()}
    return re.sub(
        r"`([a-z][a-z0-9_]*)`", lambda field: "--" + flags.get(field[1], field[1]).replace("_", "-"), str(error)
    )


def complain(message: str) -> None:
    """Write one line to stderr, whatever line breaks the message holds."""
    print("reverie:", " ".join(message.split()), file=sys.stderr)


def main() -> None:
    """Run the command line of this process."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of EXIF that is damaged, by files of Python and line numbers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals of ASCII, and file names that are no Unicode
    sys.exit(run(sys.argv[1:]))
