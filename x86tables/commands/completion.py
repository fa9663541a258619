"""Print the completion script of a shell, or the manual page.

Where a shell looks for the script:

  bash  ~/.local/share/bash-completion/completions/x86tables
  zsh   ~/.zfunc/_x86tables, with ~/.zfunc in fpath before compinit
  fish  ~/.config/fish/completions/x86tables.fish

`x86tables completion man | man -l -` shows the manual page.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "man"), help="the shell, or `man`")


def run(args: argparse.Namespace) -> int:
    """Print what the parsers of all commands say."""
    from ..checks import RULES, TABLES
    from ..delivery.scenarios import SCENARIOS
    from ..render import completion, glossary, manual
    from . import names, parser, summary

    rules = (*TABLES, *(rule.id for rule in RULES))
    words = {"WORD": (*rules, *glossary.names()), "RULES": rules, "NAME": (*SCENARIOS, "all")}
    commands = [completion.command(name, summary(name), parser(name), words) for name in names()]
    write = {"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish, "man": manual.manual}
    print("\n".join(write[args.shell](commands)))
    return 0
