"""The command line: options in, one call, printing out. One file a command."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from precisionlab import __version__
from precisionlab.cli.cache import cache_commands
from precisionlab.cli.calibrate import calibrate_command
from precisionlab.cli.compare import compare_command
from precisionlab.cli.diff import diff_command
from precisionlab.cli.doctor import doctor_command
from precisionlab.cli.export import export_command
from precisionlab.cli.extract import extract_command
from precisionlab.cli.fidelity import fidelity_command
from precisionlab.cli.interrupts import Interrupts
from precisionlab.cli.repair import repair_command
from precisionlab.cli.report import report_command
from precisionlab.cli.selftest import selftest_command
from precisionlab.cli.streams import OutputError, prepare_streams
from precisionlab.cli.sweep import sweep_command
from precisionlab.cli.verify import verify_command
from precisionlab.errors import PrecisionLabError, is_out_of_memory
from precisionlab.system.wording import one_line

INPUT_ERROR = 2
INTERNAL_ERROR = 70  # EX_SOFTWARE
PIPE_CLOSED = 141  # 128 + SIGPIPE

_INTERRUPTS = Interrupts()

_DEBUG = "--debug"
_DEBUG_HELP = "Show the traceback of an error."


class _Commands(click.Group):
    """Prints the user's errors as one sentence, and exits with 2."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. It takes `--debug` too, as people add that at the end of what they have typed."""
        for command in (cmd, *(cmd.commands.values() if isinstance(cmd, click.Group) else ())):
            command.params.append(click.Option([_DEBUG], is_flag=True, hidden=True, expose_value=False))
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrecisionLabError as error:
            _fail(ctx, error, str(error))
        except MemoryError as error:
            _fail(ctx, error, _memory_ran_out(str(error)))
        except (ImportError, RuntimeError, SystemError) as error:
            if not is_out_of_memory(error):
                raise
            _fail(ctx, error, _memory_ran_out("a library or a thread finds no room"))
        except BrokenPipeError as error:  # who read the output has seen enough
            ctx.exit(_unprinted(error))
        except OSError as error:
            if isinstance(error, OutputError) or (sentence := _of_surroundings(error)) is None:
                raise
            _fail(ctx, error, sentence)
        except KeyboardInterrupt:  # click would exit with 1, which here means that the tolerance is not met
            _INTERRUPTS.tell()
            ctx.exit(_INTERRUPTS.code)


def _memory_ran_out(words: str) -> str:
    advice = "use --memory or fewer --threads; the same command goes on from here"
    return f"memory ran out{f' ({words})' if words else ''}; {advice}"


def _of_surroundings(error: OSError) -> str | None:
    """What the system refuses whatever we do, as a sentence; None for what may be a fault of ours."""
    from precisionlab.system.disk import is_full  # not before it is needed: help is to come at once

    if is_out_of_memory(error):
        return _memory_ran_out("a library or a thread finds no room")
    where = f"{error.filename}: " if error.filename else ""
    if is_full(error):
        return f"{where}the disk is full ({error.strerror}); make room and give the same command again"
    if where and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{error.strerror}; choose a place that this user may use"
    if where and error.errno in (errno.EIO, getattr(errno, "ESTALE", errno.EIO)):
        return f"{where}{error.strerror}; see to that disk, and give the same command again"
    return None


def _fail(ctx: click.Context, error: Exception, sentence: str) -> NoReturn:
    if _is_debugging():
        traceback.print_exception(error)
    click.echo(f"precisionlab: {one_line(sentence)}", err=True)
    ctx.exit(INPUT_ERROR)


def _is_debugging() -> bool:
    return _DEBUG in sys.argv[1:]


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="precisionlab")
@click.option(_DEBUG, is_flag=True, expose_value=False, help=_DEBUG_HELP)
def cli() -> None:
    """Find the layers of an ONNX model that lose accuracy in FP16 or INT8 under TensorRT.

    Pin as few of them as possible to FP32, and check that the model is right again.
    """


cli.add_command(sweep_command)
cli.add_command(repair_command)
cli.add_command(verify_command)
cli.add_command(export_command)
cli.add_command(report_command)
cli.add_command(diff_command)
cli.add_command(compare_command)
cli.add_command(extract_command)
cli.add_command(calibrate_command)
cli.add_command(cache_commands)
cli.add_command(doctor_command)
cli.add_command(selftest_command)
cli.add_command(fidelity_command)


def main() -> None:
    """The entry point of the `precisionlab` command."""
    has_output = prepare_streams()
    _INTERRUPTS.install()
    try:
        cli(prog_name="precisionlab")
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # on the way in, or out
        _INTERRUPTS.tell()
        code = _INTERRUPTS.code
    except OutputError as error:
        code = _unprinted(error)
    except Exception as error:
        code = _internal(error)
    if not has_output and code in (0, 1):
        click.echo("precisionlab: standard output is closed, so nothing could be printed there", err=True)
        code = INPUT_ERROR
    try:
        sys.stdout.flush()  # not when Python ends: there nobody can be told any more
    except OSError as error:
        code = _unprinted(error)
    _INTERRUPTS.leave()
    sys.exit(code)


def _unprinted(error: OSError) -> int:
    """Tell that standard output takes no more, but not where its reader has seen enough."""
    _silence()
    if isinstance(error, BrokenPipeError) or error.errno == errno.EPIPE:
        return PIPE_CLOSED
    click.echo(f"precisionlab: standard output cannot be written ({error.strerror})", err=True)
    return INPUT_ERROR


def _internal(error: Exception) -> int:
    """Tell of an error that is nobody's but ours."""
    if _is_debugging():
        traceback.print_exception(error)
    words = " ".join(str(error).split())
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    advice = f"run it again with {_DEBUG}, and report what that prints"
    click.echo(f"precisionlab: internal error: {what}; {advice}", err=True)
    return INTERNAL_ERROR


def _silence() -> None:
    """Send what is still to be printed nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
